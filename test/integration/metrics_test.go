// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// metrics are one object's, by name; with more labels than the usual ones, by "name key=value".
type metrics map[string]uint64

func gather(t *testing.T, k *kubelet.Kubelet, sandbox string) (pod metrics, containers map[string]metrics, labels map[string]map[string]string) {
	t.Helper()
	keys := map[string][]string{}
	ds, err := k.D.Runtime.ListMetricDescriptors(k.Ctx(), &cri.ListMetricDescriptorsRequest{})
	for _, d := range kubelet.Must(k, ds, err).GetDescriptors() {
		keys[d.GetName()] = d.GetLabelKeys()
	}
	labels = map[string]map[string]string{}
	index := func(id string, all []*cri.Metric) metrics {
		out := metrics{}
		for _, m := range all {
			if len(keys[m.GetName()]) != len(m.GetLabelValues()) {
				t.Errorf("%s: labels %v, keys %v", m.GetName(), m.GetLabelValues(), keys[m.GetName()])
				continue
			}
			of, name := map[string]string{}, m.GetName()
			for i, key := range keys[m.GetName()] {
				of[key] = m.GetLabelValues()[i]
				if i >= 6 {
					name += " " + key + "=" + m.GetLabelValues()[i]
				}
			}
			out[name], labels[id] = m.GetValue().GetValue(), of
		}
		return out
	}
	r, err := k.D.Runtime.ListPodSandboxMetrics(k.Ctx(), &cri.ListPodSandboxMetricsRequest{})
	containers = map[string]metrics{}
	for _, p := range kubelet.Must(k, r, err).GetPodMetrics() {
		if p.GetPodSandboxId() != sandbox {
			continue
		}
		pod = index(sandbox, p.GetMetrics())
		for _, c := range p.GetContainerMetrics() {
			containers[c.GetContainerId()] = index(c.GetContainerId(), c.GetMetrics())
		}
	}
	return pod, containers, labels
}

func TestMetricsAreWhatTheKernelSays(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("metrics"))
	config := k.Shell("main", `head -c 1048576 /dev/zero > /file; sync; sleep 1001 & sleep 1002 & nc -l -p 9 & echo ready; wait`)
	r := config.Linux.Resources
	r.CpuPeriod, r.CpuQuota, r.CpuShares, r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 100000, 50000, 512, 64<<20, 64<<20
	c := p.Start(config)
	c.WaitOutput("ready")
	c.Exec("ping -c 1 $(ip route | awk '/default/{print $3}') > /dev/null")
	pid := pidOf(t, c)
	kernel := cgroupOf(t, pid, 0)
	// The last to settle is the listener, which wants its socket first.
	kubelet.Eventually(t, 20e9, func() string {
		if n := len(strings.Fields(kernel.read("pids", "cgroup.procs"))); n != 4 {
			return fmt.Sprintf("%d processes, want 4", n)
		}
		return ""
	})
	pod, containers, labels := gather(t, k, p.ID)
	m := containers[c.ID]
	if m == nil {
		t.Fatalf("no metrics of the container: %v", containers)
	}
	for name, want := range map[string]uint64{
		"container_processes":                       4,
		"container_threads":                         kernel.number("pids", "pids.current", "pids.current"),
		"container_spec_cpu_period":                 100000,
		"container_spec_cpu_quota":                  50000,
		"container_spec_memory_limit_bytes":         64 << 20,
		"container_file_descriptors":                descriptors(t, kernel, ""),
		"container_sockets":                         descriptors(t, kernel, "socket:"),
		"container_memory_max_usage_bytes":          kernel.number("memory", "memory.max_usage_in_bytes", "memory.peak"),
		"container_oom_events_total":                0,
		"container_cpu_cfs_throttled_periods_total": kernel.number("cpu", "cpu.stat nr_throttled", "cpu.stat nr_throttled"),
	} {
		got, ok := m[name]
		if !ok || got != want {
			t.Errorf("%s: got %d (%v), the kernel says %d", name, got, ok, want)
		}
	}
	for _, name := range []string{"container_cpu_usage_seconds_total cpu=total", "container_last_seen", "container_start_time_seconds", "container_memory_rss",
		"container_memory_working_set_bytes", "container_memory_failures_total failure_type=pgfault scope=container", "container_spec_cpu_shares",
		"container_memory_kernel_usage", "container_threads_max", "container_ulimits_soft ulimit=max_open_files"} {
		if _, ok := m[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
	of := labels[c.ID]
	equal(t, "pod", of["pod"], "metrics")
	equal(t, "namespace", of["namespace"], "default")
	equal(t, "container", of["container"], "main")
	equal(t, "name", of["name"], c.ID)
	contains(t, "image", of["image"], "busybox")
	if !strings.HasSuffix(strings.TrimSuffix(of["id"], ".scope"), c.ID) { // systemd's name of the cgroup
		t.Errorf("id %q does not end in the container's", of["id"])
	}
	now := netDev(t, pid, "eth0")
	if rx := pod["container_network_receive_bytes_total interface=eth0"]; rx == 0 || rx > now[0] {
		t.Errorf("received %d, the kernel says %d", rx, now[0])
	}
	if cpu, ok := pod["container_cpu_usage_seconds_total cpu=total"]; !ok || labels[p.ID]["container"] != "" {
		t.Errorf("the pod's own: %d, %v", cpu, labels[p.ID])
	}
}

// descriptors counts the open files of a cgroup's processes that begin with what is given.
func descriptors(t *testing.T, kernel kernelFiles, prefix string) (n uint64) {
	t.Helper()
	for _, pid := range strings.Fields(kernel.read("pids", "cgroup.procs")) {
		fds, err := os.ReadDir("/proc/" + pid + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if to, err := os.Readlink("/proc/" + pid + "/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, prefix) {
				n++
			}
		}
	}
	return n
}
