// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// kernelFiles reads what the kernel says of a cgroup, past Berth.
type kernelFiles struct {
	t     *testing.T
	paths map[string]string
	h     *cgroup.Hierarchies
}

func pidOf(t *testing.T, c *kubelet.Container) int {
	t.Helper()
	r, err := c.D.Runtime.ContainerStatus(c.Ctx(), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil || info.PID == 0 {
		t.Fatalf("pid: %v in %s", err, r.GetInfo()["info"])
	}
	return info.PID
}

func cgroupOf(t *testing.T, pid int, up int) kernelFiles {
	t.Helper()
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	paths, err := proc.CgroupPaths(pid)
	if err != nil {
		t.Fatal(err)
	}
	for c := range paths {
		for range up {
			paths[c] = filepath.Dir(paths[c])
		}
	}
	return kernelFiles{t, paths, h}
}

func (k kernelFiles) read(controller, name string) string {
	k.t.Helper()
	path := k.paths[controller]
	if k.h.Mode() == cgroup.Unified {
		path = k.paths[""]
	}
	dir, ok := k.h.Folder(controller, path)
	if !ok {
		k.t.Fatalf("no controller %s", controller)
	}
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		k.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// number reads a file of one number in v1 or v2, or a line of a file of pairs ("file key").
func (k kernelFiles) number(controller, v1, v2 string) uint64 {
	k.t.Helper()
	name := v1
	if k.h.Mode() == cgroup.Unified {
		name = v2
	}
	file, key, pairs := strings.Cut(name, " ")
	text := k.read(controller, file)
	if pairs {
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == key {
				text = f[1]
			}
		}
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		k.t.Fatalf("%s %s: %v", controller, name, err)
	}
	return n
}

func (k kernelFiles) cpuNanos() uint64 {
	n := k.number("cpuacct", "cpuacct.usage", "cpu.stat usage_usec")
	if k.h.Mode() == cgroup.Unified {
		n *= 1000
	}
	return n
}

// within tells whether a counter lies between what the kernel said before and after it was asked for, with some play for memory, which
// the kernel counts in batches.
func within(t *testing.T, what string, before uint64, got *cri.UInt64Value, after, play uint64) {
	t.Helper()
	low, high := min(before, after), max(before, after)
	if got == nil || got.Value+play < low || got.Value > high+play {
		t.Errorf("%s: got %v, the kernel says %d to %d", what, got, before, after)
	}
}

const kernelBatch = 4 << 20 // memory that a CPU may hold back from the counters

// busy uses CPU and memory, makes page faults and writes to its root file system.
const busy = `head -c 1048576 /dev/zero > /file; sync; echo ready; while :; do cat /file > /dev/null; done`

func TestStatisticsAreWhatTheKernelSays(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	pod := k.RunPod(k.PodConfig("stats"))
	config := k.Shell("busy", busy)
	config.Linux.Resources.MemoryLimitInBytes = 64 << 20
	c := pod.Start(config)
	c.WaitOutput("ready")
	idle := pod.Start(k.Forever("idle"))
	kernel := cgroupOf(t, pidOf(t, c), 0)

	ask := func() *cri.ContainerStats {
		r, err := k.D.Runtime.ContainerStats(k.Ctx(), &cri.ContainerStatsRequest{ContainerId: c.ID})
		return kubelet.Must(k, r, err).GetStats()
	}
	first := ask()
	time.Sleep(1100 * time.Millisecond)
	cpu, memory, faults := kernel.cpuNanos(), kernel.number("memory", "memory.usage_in_bytes", "memory.current"),
		kernel.number("memory", "memory.stat total_pgfault", "memory.stat pgfault")
	before := time.Now().UnixNano()
	s := ask()
	after := time.Now().UnixNano()
	within(t, "CPU", cpu, s.GetCpu().GetUsageCoreNanoSeconds(), kernel.cpuNanos(), 0)
	within(t, "memory", memory, s.GetMemory().GetUsageBytes(), kernel.number("memory", "memory.usage_in_bytes", "memory.current"), kernelBatch)
	within(t, "page faults", faults, s.GetMemory().GetPageFaults(), kernel.number("memory", "memory.stat total_pgfault", "memory.stat pgfault"), 0)
	for what, at := range map[string]int64{"CPU": s.GetCpu().GetTimestamp(), "memory": s.GetMemory().GetTimestamp()} {
		if at < before || at > after {
			t.Errorf("%s was read at %d, the question was from %d to %d", what, at, before, after)
		}
	}
	rate := float64(s.GetCpu().GetUsageCoreNanoSeconds().GetValue()-first.GetCpu().GetUsageCoreNanoSeconds().GetValue()) /
		(float64(s.GetCpu().GetTimestamp()-first.GetCpu().GetTimestamp()) / 1e9)
	if got := float64(s.GetCpu().GetUsageNanoCores().GetValue()); got == 0 || got < rate*0.99 || got > rate*1.01 {
		t.Errorf("got %.0f ns of CPU time a second, its own counters say %.0f", got, rate)
	}
	m := s.GetMemory()
	if m.GetWorkingSetBytes().GetValue()+m.GetAvailableBytes().GetValue() != 64<<20 {
		t.Errorf("working set %v and available %v are not the limit together", m.GetWorkingSetBytes(), m.GetAvailableBytes())
	}
	if m.GetRssBytes() == nil || m.GetMajorPageFaults() == nil || s.GetSwap().GetSwapUsageBytes() == nil {
		t.Errorf("something is missing: %v", s)
	}
	if got := s.GetWritableLayer(); got.GetUsedBytes().GetValue() < 1<<20 || got.GetUsedBytes().GetValue() > 2<<20 || got.GetInodesUsed().GetValue() < 2 ||
		got.GetFsId().GetMountpoint() == "" || got.GetTimestamp() == 0 {
		t.Errorf("writable layer: %v", got)
	}
	equal(t, "labels", s.GetAttributes().GetLabels()["io.kubernetes.container.name"], "busy")
	equal(t, "name", s.GetAttributes().GetMetadata().GetName(), "busy")

	podStats(t, pod, kernel, c, idle)
}

func podStats(t *testing.T, pod *kubelet.Pod, kernel kernelFiles, containers ...*kubelet.Container) {
	t.Helper()
	up := cgroupOf(t, pidOf(t, containers[0]), 1)
	pid := pidOf(t, containers[1])
	containers[1].Exec("ping -c 3 -i 0.1 $(ip route | awk '/default/{print $3}') > /dev/null")
	cpu, rx := up.cpuNanos(), netDev(t, pid, "eth0")
	r, err := pod.D.Runtime.PodSandboxStats(pod.Ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: pod.ID})
	s := kubelet.Must(pod.Kubelet, r, err).GetStats()
	within(t, "pod's CPU", cpu, s.GetLinux().GetCpu().GetUsageCoreNanoSeconds(), up.cpuNanos(), 0)
	now := netDev(t, pid, "eth0")
	n := s.GetLinux().GetNetwork()
	equal(t, "default interface", n.GetDefaultInterface().GetName(), "eth0")
	within(t, "received", rx[0], n.GetDefaultInterface().GetRxBytes(), now[0], 0)
	within(t, "sent", rx[1], n.GetDefaultInterface().GetTxBytes(), now[1], 0)
	if rx[0] == 0 || rx[1] == 0 {
		t.Errorf("nothing went over eth0: %v", rx)
	}
	equal(t, "containers", len(s.GetLinux().GetContainers()), 2)
	equal(t, "pod", s.GetAttributes().GetMetadata().GetName(), "stats")
	if got := s.GetLinux().GetProcess().GetProcessCount().GetValue(); got < 3 {
		t.Errorf("%d processes", got)
	}
	if kernel.h.Mode() == cgroup.Unified && s.GetLinux().GetCpu().GetPsi() == nil {
		t.Error("no pressure on cgroup v2")
	}
}

// netDev are the bytes that an interface in a process's network namespace has received and sent.
func netDev(t *testing.T, pid int, name string) [2]uint64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && fields[0] == name+":" {
			rx, err1 := strconv.ParseUint(fields[1], 10, 64)
			tx, err2 := strconv.ParseUint(fields[9], 10, 64)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			return [2]uint64{rx, tx}
		}
	}
	t.Fatalf("no interface %s", name)
	return [2]uint64{}
}

func TestStatisticsAreListedByFilter(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	a, b := k.RunPod(k.PodConfig("a")), k.RunPod(k.PodConfig("b"))
	a1, a2, b1 := a.Start(k.Forever("one")), a.Start(k.Forever("two")), b.Start(k.Forever("one"))
	created := b.Create(k.Forever("created"))
	ended := b.Start(k.Shell("ended", "true"))
	ended.WaitExit()
	list := func(f *cri.ContainerStatsFilter) []string {
		r, err := k.D.Runtime.ListContainerStats(k.Ctx(), &cri.ListContainerStatsRequest{Filter: f})
		var ids []string
		for _, s := range kubelet.Must(k, r, err).GetStats() {
			ids = append(ids, s.GetAttributes().GetId())
			if s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetTimestamp() == 0 {
				t.Errorf("a running container without figures: %v", s)
			}
		}
		return slices.Sorted(slices.Values(ids))
	}
	for name, c := range map[string]struct {
		f    *cri.ContainerStatsFilter
		want []*kubelet.Container
	}{
		"all that run":    {nil, []*kubelet.Container{a1, a2, b1}},
		"id":              {&cri.ContainerStatsFilter{Id: a2.ID}, []*kubelet.Container{a2}},
		"pod":             {&cri.ContainerStatsFilter{PodSandboxId: a.ID}, []*kubelet.Container{a1, a2}},
		"label":           {&cri.ContainerStatsFilter{LabelSelector: map[string]string{"io.kubernetes.container.name": "one"}}, []*kubelet.Container{a1, b1}},
		"pod and label":   {&cri.ContainerStatsFilter{PodSandboxId: b.ID, LabelSelector: map[string]string{"io.kubernetes.container.name": "one"}}, []*kubelet.Container{b1}},
		"label of nobody": {&cri.ContainerStatsFilter{LabelSelector: map[string]string{"io.kubernetes.container.name": "none"}}, nil},
	} {
		var want []string
		for _, w := range c.want {
			want = append(want, w.ID)
		}
		if got := list(c.f); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	for _, c := range []*kubelet.Container{created, ended} {
		r, err := k.D.Runtime.ContainerStats(k.Ctx(), &cri.ContainerStatsRequest{ContainerId: c.ID})
		if err != nil || r.GetStats().GetAttributes().GetId() != c.ID || r.GetStats().GetCpu() != nil {
			t.Errorf("a container that does not run: %v, %v", r, err)
		}
	}
	_, err := k.D.Runtime.ContainerStats(k.Ctx(), &cri.ContainerStatsRequest{ContainerId: strings.Repeat("0", 64)})
	wantError(t, err, []codes.Code{codes.NotFound}, strings.Repeat("0", 64))
	sandboxLists(t, k, a, b)
}

func sandboxLists(t *testing.T, k *kubelet.Kubelet, a, b *kubelet.Pod) {
	t.Helper()
	list := func(f *cri.PodSandboxStatsFilter) []string {
		r, err := k.D.Runtime.ListPodSandboxStats(k.Ctx(), &cri.ListPodSandboxStatsRequest{Filter: f})
		var ids []string
		for _, s := range kubelet.Must(k, r, err).GetStats() {
			ids = append(ids, s.GetAttributes().GetId())
		}
		return slices.Sorted(slices.Values(ids))
	}
	equal(t, "all pods", len(list(nil)), 2)
	equal(t, "by id", strings.Join(list(&cri.PodSandboxStatsFilter{Id: a.ID}), ","), a.ID)
	equal(t, "by label", strings.Join(list(&cri.PodSandboxStatsFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": "b"}}), ","), b.ID)
	a.Stop()
	equal(t, "stopped ones are left out", strings.Join(list(nil), ","), b.ID)
	r, err := k.D.Runtime.PodSandboxStats(k.Ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: a.ID})
	if err != nil || r.GetStats().GetLinux() == nil || r.GetStats().GetLinux().GetCpu() != nil {
		t.Errorf("a stopped pod: %v, %v", r, err)
	}
	_, err = k.D.Runtime.PodSandboxStats(k.Ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: strings.Repeat("0", 64)})
	wantError(t, err, []codes.Code{codes.NotFound})
}

func TestAPodWithHostNetworkHasNoNetworkStatistics(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config := k.PodConfig("hostnet")
	config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	p := k.RunPod(config)
	p.Start(k.Forever("main"))
	r, err := k.D.Runtime.PodSandboxStats(k.Ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
	if err != nil || r.GetStats().GetLinux().GetNetwork() != nil || r.GetStats().GetLinux().GetCpu() == nil {
		t.Errorf("got %v, %v", r, err)
	}
}
