// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/test/daemon"
)

func TestUnifiedResourcesAreWhatTheKernelHas(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if h.Mode() != cgroup.Unified {
		t.Skip("cgroups are " + h.Mode().String() + " here; make test-vm has version 2")
	}
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("unified"))
	spec := k.Forever("main")
	spec.Linux.Resources = &cri.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
		Unified:        map[string]string{"memory.high": fmt.Sprint(48 << 20), "pids.max": "77", "memory.oom.group": "1"},
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
	}
	c := p.Start(spec)
	in := func(name string) string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", c.Cgroup(), name))
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(data))
	}
	for name, want := range map[string]string{
		"cpu.max": "20000 100000", "memory.max": fmt.Sprint(64 << 20), "memory.swap.max": fmt.Sprint(32 << 20), "memory.high": fmt.Sprint(48 << 20),
		"pids.max": "77", "memory.oom.group": "1", "hugetlb.2MB.max": fmt.Sprint(4 << 20),
	} {
		equal(t, name, in(name), want)
	}
	err = updateContainer(c, &cri.LinuxContainerResources{MemoryLimitInBytes: 80 << 20, MemorySwapLimitInBytes: 80 << 20, CpuQuota: -1, CpuPeriod: 100000,
		Unified: map[string]string{"memory.high": fmt.Sprint(56 << 20)}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"cpu.max": "max 100000", "memory.max": fmt.Sprint(80 << 20), "memory.swap.max": "0", "memory.high": fmt.Sprint(56 << 20), "pids.max": "77",
	} {
		equal(t, name+" after the update", in(name), want)
	}
	spec = k.Forever("unknown-key")
	spec.Linux.Resources.Unified = map[string]string{"memory.none": "1"}
	bad := p.Create(spec)
	wantError(t, bad.TryStart(), failures, "memory.none")
}
