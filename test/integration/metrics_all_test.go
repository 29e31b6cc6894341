// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// source is where the kernel tells a metric: a file of one number, or a line of a file of pairs ("file key"), on v1 and on v2, in what unit; empty: not there.
type source struct {
	controller, v1, v2 string
	unit1, unit2       uint64
	// play is how far one may be off that goes up and down, or that the kernel counts in batches, as memory.
	play uint64
}

var sources = map[string]source{
	"container_cpu_usage_seconds_total cpu=total":                             {"cpuacct", "cpuacct.usage", "cpu.stat usage_usec", 1e9, 1e6, 0},
	"container_cpu_user_seconds_total":                                        {"cpuacct", "cpuacct.usage_user", "cpu.stat user_usec", 1e9, 1e6, 0},
	"container_cpu_system_seconds_total":                                      {"cpuacct", "cpuacct.usage_sys", "cpu.stat system_usec", 1e9, 1e6, 0},
	"container_cpu_cfs_periods_total":                                         {"cpu", "cpu.stat nr_periods", "cpu.stat nr_periods", 1, 1, 0},
	"container_cpu_cfs_throttled_periods_total":                               {"cpu", "cpu.stat nr_throttled", "cpu.stat nr_throttled", 1, 1, 0},
	"container_cpu_cfs_throttled_seconds_total":                               {"cpu", "cpu.stat throttled_time", "cpu.stat throttled_usec", 1e9, 1e6, 0},
	"container_cpu_cfs_burst_periods_total":                                   {"cpu", "cpu.stat nr_bursts", "cpu.stat nr_bursts", 1, 1, 0},
	"container_cpu_cfs_burst_seconds_total":                                   {"cpu", "cpu.stat burst_time", "cpu.stat burst_usec", 1e9, 1e6, 0},
	"container_memory_cache":                                                  {"memory", "memory.stat total_cache", "memory.stat file", 1, 1, kernelBatch},
	"container_memory_rss":                                                    {"memory", "memory.stat total_rss", "memory.stat anon", 1, 1, kernelBatch},
	"container_memory_kernel_usage":                                           {"memory", "memory.kmem.usage_in_bytes", "memory.stat kernel", 1, 1, kernelBatch},
	"container_memory_mapped_file":                                            {"memory", "memory.stat total_mapped_file", "memory.stat file_mapped", 1, 1, kernelBatch},
	"container_memory_swap":                                                   {"memory", "memory.stat total_swap", "memory.swap.current", 1, 1, 0},
	"container_memory_failcnt":                                                {"memory", "memory.failcnt", "memory.events max", 1, 1, 0},
	"container_memory_usage_bytes":                                            {"memory", "memory.usage_in_bytes", "memory.current", 1, 1, kernelBatch},
	"container_memory_max_usage_bytes":                                        {"memory", "memory.max_usage_in_bytes", "memory.peak", 1, 1, 0},
	"container_memory_total_active_file_bytes":                                {"memory", "memory.stat total_active_file", "memory.stat active_file", 1, 1, kernelBatch},
	"container_memory_total_inactive_file_bytes":                              {"memory", "memory.stat total_inactive_file", "memory.stat inactive_file", 1, 1, kernelBatch},
	"container_memory_failures_total failure_type=pgfault scope=hierarchy":    {"memory", "memory.stat total_pgfault", "memory.stat pgfault", 1, 1, 0},
	"container_memory_failures_total failure_type=pgfault scope=container":    {"memory", "memory.stat pgfault", "memory.stat pgfault", 1, 1, 0},
	"container_memory_failures_total failure_type=pgmajfault scope=hierarchy": {"memory", "memory.stat total_pgmajfault", "memory.stat pgmajfault", 1, 1, 0},
	"container_memory_failures_total failure_type=pgmajfault scope=container": {"memory", "memory.stat pgmajfault", "memory.stat pgmajfault", 1, 1, 0},
	"container_oom_events_total":                                              {"memory", "memory.oom_control oom_kill", "memory.events oom_kill", 1, 1, 0},
	"container_threads":                                                       {"pids", "pids.current", "pids.current", 1, 1, 1}, // the shell's child comes and goes
	"container_threads_max":                                                   {"pids", "pids.max", "pids.max", 1, 1, 0},
	"container_spec_cpu_period":                                               {"cpu", "cpu.cfs_period_us", "", 1, 1, 0},
	"container_spec_cpu_quota":                                                {"cpu", "cpu.cfs_quota_us", "", 1, 1, 0},
	"container_spec_cpu_shares":                                               {"cpu", "cpu.shares", "", 1, 1, 0},
	"container_spec_memory_limit_bytes":                                       {"memory", "memory.limit_in_bytes", "memory.max", 1, 1, 0},
	"container_spec_memory_swap_limit_bytes":                                  {"memory", "memory.memsw.limit_in_bytes", "memory.swap.max", 1, 1, 0},
	"container_spec_memory_reservation_limit_bytes":                           {"memory", "memory.soft_limit_in_bytes", "memory.min", 1, 1, 0},
	"container_pressure_cpu_waiting_seconds_total":                            {"", "cpu.pressure some", "cpu.pressure some", 1e6, 1e6, 0},
	"container_pressure_cpu_stalled_seconds_total":                            {"", "cpu.pressure full", "cpu.pressure full", 1e6, 1e6, 0},
	"container_pressure_memory_waiting_seconds_total":                         {"", "memory.pressure some", "memory.pressure some", 1e6, 1e6, 0},
	"container_pressure_memory_stalled_seconds_total":                         {"", "memory.pressure full", "memory.pressure full", 1e6, 1e6, 0},
	"container_pressure_io_waiting_seconds_total":                             {"", "io.pressure some", "io.pressure some", 1e6, 1e6, 0},
	"container_pressure_io_stalled_seconds_total":                             {"", "io.pressure full", "io.pressure full", 1e6, 1e6, 0},
}

// figure reads a source; false: this kernel has none.
func (k kernelFiles) figure(s source) (n uint64, ok bool) {
	k.t.Helper()
	name, unit, path := s.v1, s.unit1, k.paths[s.controller]
	if k.h.Mode() == cgroup.Unified {
		name, unit, path = s.v2, s.unit2, k.paths[""]
	}
	file, key, pairs := strings.Cut(name, " ")
	dir, ok := k.h.Folder(s.controller, path)
	if !ok || name == "" {
		return 0, false
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, false
	}
	text := strings.TrimSpace(string(data))
	if pairs {
		found := false
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == key {
				text, found = strings.TrimPrefix(f[len(f)-1], "total="), true
			}
		}
		if !found {
			return 0, false
		}
	}
	if text == "max" {
		return 0, true // cAdvisor's for no limit
	}
	if n, err = strconv.ParseUint(text, 10, 64); err != nil {
		k.t.Fatalf("%s: %v", name, err)
	}
	if n > math.MaxInt64-1<<20 { // v1's for no limit
		n = 0
	}
	return n / unit, true
}

// TestEveryMetricIsWhatTheKernelSays compares all of a container's with what the kernel says before and after.
func TestEveryMetricIsWhatTheKernelSays(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("all"))
	config := k.Shell("main", busy)
	r := config.Linux.Resources
	r.CpuPeriod, r.CpuQuota, r.CpuShares, r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 100000, 50000, 512, 64<<20, 64<<20
	c := p.Start(config)
	c.WaitOutput("ready")
	// Until it has used seconds of everything that it uses.
	pid := pidOf(t, c)
	kernel := cgroupOf(t, pid, 0)
	kubelet.Eventually(t, time.Minute, func() string {
		if n, _ := kernel.figure(sources["container_cpu_usage_seconds_total cpu=total"]); n < 1 {
			return "less than a second of CPU time is used"
		}
		return ""
	})
	look := func() metrics {
		all := metrics{}
		for name, s := range sources {
			if n, ok := kernel.figure(s); ok {
				all[name] = n
			}
		}
		for i, name := range []string{"receive_bytes", "receive_packets", "receive_errors", "receive_packets_dropped", "transmit_bytes", "transmit_packets",
			"transmit_errors", "transmit_packets_dropped"} {
			all["container_network_"+name+"_total interface=eth0"] = netColumns(t, pid, "eth0")[i]
		}
		return all
	}
	before, began := look(), time.Now()
	pod, containers, _ := gather(t, k, p.ID)
	after := look()
	compared := 0
	for name, low := range before {
		high, ok := after[name]
		if !ok {
			continue
		}
		m := containers[c.ID]
		if strings.HasPrefix(name, "container_network_") {
			m = pod
		}
		got, ok := m[name]
		low, high = min(low, high), max(low, high)
		if play := sources[name].play; !ok || got+play < low || got > high+play {
			t.Errorf("%s: got %d (%v), the kernel says %d to %d", name, got, ok, low, high)
		}
		compared++
	}
	if compared < 35 {
		t.Errorf("only %d metrics were compared", compared)
	}
	others(t, k, c, containers[c.ID], began)
}

// others are the metrics that no file of the cgroup holds as they are.
func others(t *testing.T, k *kubelet.Kubelet, c *kubelet.Container, m metrics, began time.Time) {
	t.Helper()
	r, err := k.D.Runtime.ContainerStatus(k.Ctx(), &cri.ContainerStatusRequest{ContainerId: c.ID})
	started := kubelet.Must(k, r, err).GetStatus().GetStartedAt() / 1e9
	equal(t, "started", m["container_start_time_seconds"], uint64(started))
	if seen := m["container_last_seen"]; seen < uint64(began.Unix()) || seen > uint64(time.Now().Unix()) {
		t.Errorf("seen at %d, asked at %d", seen, began.Unix())
	}
	usage, cache := m["container_memory_usage_bytes"], m["container_memory_total_inactive_file_bytes"]
	equal(t, "working set", m["container_memory_working_set_bytes"], usage-min(usage, cache))
	var st syscall.Statfs_t
	if err := syscall.Statfs(k.D.Root, &st); err != nil {
		t.Fatal(err)
	}
	of := func(name string) (n uint64) {
		t.Helper()
		found := false
		for series, value := range m {
			if strings.HasPrefix(series, name+" ") {
				n, found = n+value, true
			}
		}
		if !found {
			t.Errorf("%s is missing", name)
		}
		return n
	}
	equal(t, "size", of("container_fs_limit_bytes"), st.Blocks*uint64(st.Bsize))
	equal(t, "inodes", of("container_fs_inodes_total"), st.Files)
	if free := of("container_fs_inodes_free"); free > st.Files || free == 0 && st.Files > 0 {
		t.Errorf("%d inodes are free of %d", free, st.Files)
	}
	if used := of("container_fs_usage_bytes"); used < 1<<20 || used > 2<<20 {
		t.Errorf("the writable layer has %d bytes, 1 MiB was written", used)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pidOf(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(limits), "Max open files")
	equal(t, "limit of open files", strconv.FormatUint(m["container_ulimits_soft ulimit=max_open_files"], 10), strings.Fields(rest)[0])
}

// netColumns are an interface's counters: bytes, packets, errors, dropped, received and sent.
func netColumns(t *testing.T, pid int, name string) (n [8]uint64) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name+":")
		if !ok {
			continue
		}
		for i, f := range strings.Fields(rest) {
			at := i%8 + i/8*4
			if i%8 > 3 || at > 7 {
				continue
			}
			if n[at], err = strconv.ParseUint(f, 10, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}
