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
	"github.com/berth-run/berth/test/kubelet"
)

// limitsIn reads the limits that the kernel has in force.
func limitsIn(t *testing.T, path string) cgroup.Limits {
	t.Helper()
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.ReadLimits(path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func updateContainer(c *kubelet.Container, r *cri.LinuxContainerResources) error {
	_, err := c.D.Runtime.UpdateContainerResources(c.Ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
	return err
}

// waitForScore tells the score of an exec and of its child, once that is 777: the OCI runtime starts it with the one of the container's start.
const waitForScore = `for i in $(seq 200); do [ "$(cat /proc/$$/oom_score_adj)" = 777 ] && break; sleep 0.1; done; cat /proc/self/oom_score_adj`

func TestAnUpdateIsReportedAsTheKernelTookIt(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("readback"))
	spec := k.Forever("main")
	spec.Linux.Resources.OomScoreAdj = 100
	c := p.Start(spec)
	c.Exec("sleep 1000 </dev/null >/dev/null 2>&1 &") // a second process, which is not the init
	odd := int64(64<<20 + 1234)
	if err := updateContainer(c, &cri.LinuxContainerResources{CpuShares: 333, CpuQuota: 30000, CpuPeriod: 60000, MemoryLimitInBytes: odd,
		MemorySwapLimitInBytes: odd, OomScoreAdj: 777}); err != nil {
		t.Fatal(err)
	}
	got := limitsIn(t, c.Cgroup())
	equal(t, "memory in the cgroup", got.Memory, odd/4096*4096)
	equal(t, "quota in the cgroup", fmt.Sprint(got.CPUQuota, got.CPUPeriod), "30000 60000")
	r := c.Status().GetResources().GetLinux()
	equal(t, "memory in status", r.GetMemoryLimitInBytes()/4096, got.Memory/4096)
	equal(t, "shares in status", r.GetCpuShares(), 333)
	equal(t, "quota in status", r.GetCpuQuota(), 30000)
	equal(t, "oom_score_adj in status", r.GetOomScoreAdj(), 777)
	equal(t, "oom_score_adj of all processes", c.Exec(`for p in $(pgrep -f sleep) 1; do cat /proc/$p/oom_score_adj; done | sort -u`), "777")
	equal(t, "oom_score_adj of an exec that comes later", c.Exec(waitForScore), "777")

	if err := updateContainer(c, &cri.LinuxContainerResources{OomScoreAdj: -997}); err != nil {
		t.Fatal(err)
	}
	inForce := c.Exec("cat /proc/1/oom_score_adj")
	equal(t, "lowest oom_score_adj in status", fmt.Sprint(c.Status().GetResources().GetLinux().GetOomScoreAdj()), inForce)
	if inForce == "-997" {
		return
	}
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "clamped to the daemon's own", inForce, strings.TrimSpace(string(own)))
	p.Start(k.Forever("second"))
	if n := strings.Count(k.D.LogTail(1000), "oom_score_adj is raised to"); n != 1 {
		t.Errorf("the clamp is logged %d times, want once", n)
	}
}

func TestAPodsResourcesAreSetAndVerified(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	config := k.PodConfig("resized")
	config.Linux.CgroupParent = k.D.PodCgroup("pod1")
	p := k.RunPod(config)
	c := p.Start(k.Forever("main"))
	before := limitsIn(t, "/"+k.D.CgroupParent+"/"+filepath.Base(config.Linux.CgroupParent))
	update := func(resources, overhead *cri.LinuxContainerResources) error {
		_, err := k.D.Runtime.UpdatePodSandboxResources(k.Ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID, Resources: resources, Overhead: overhead})
		return err
	}
	want := &cri.LinuxContainerResources{CpuShares: 512, CpuQuota: 80000, CpuPeriod: 100000, MemoryLimitInBytes: 128 << 20}
	for range 2 { // a kubelet repeats it
		if err := update(want, &cri.LinuxContainerResources{CpuShares: 10, CpuQuota: 1000, CpuPeriod: 100000, MemoryLimitInBytes: 8 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	got := limitsIn(t, "/"+k.D.CgroupParent+"/"+filepath.Base(config.Linux.CgroupParent))
	if !got.Same(cgroup.Limits{CPUShares: 522, CPUQuota: 81000, CPUPeriod: 100000, Memory: 136 << 20}) {
		t.Errorf("before %+v, now %+v", before, got)
	}
	if err := update(&cri.LinuxContainerResources{CpuQuota: -1}, nil); err != nil {
		t.Fatal(err)
	}
	if got := limitsIn(t, "/"+k.D.CgroupParent+"/"+filepath.Base(config.Linux.CgroupParent)); !got.Same(cgroup.Limits{CPUShares: 522, CPUQuota: -1, Memory: 136 << 20}) {
		t.Errorf("one field changed others: %+v", got)
	}
	wantError(t, update(&cri.LinuxContainerResources{CpusetCpus: "60000"}, nil), failures, "pod1")
	wantError(t, update(&cri.LinuxContainerResources{CpuShares: -1}, nil), invalid, "resources.cpu_shares")
	equal(t, "the container goes on", c.Exec("echo ok"), "ok")

	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	if err := update(want, nil); err != nil {
		t.Fatal(err)
	}
	p.Stop()
	wantError(t, update(want, nil), wrong, "not ready")
}

func TestFieldsOfOtherNodesAreRefused(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("linux")).Start(k.Forever("main"))
	_, err := k.D.Runtime.UpdateContainerResources(k.Ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Windows: &cri.WindowsContainerResources{CpuCount: 1},
		Linux: &cri.LinuxContainerResources{CpuShares: 2}})
	wantError(t, err, invalid, "windows")
	_, err = k.D.Images.PullImage(k.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: busyboxRef, RuntimeHandler: "warp"}})
	wantError(t, err, invalid, "warp", "runtime_handler", "runc")
	bad := k.Forever("windows")
	bad.Windows = &cri.WindowsContainerConfig{}
	_, err = c.TryCreate(bad)
	wantError(t, err, invalid, "windows")
}
