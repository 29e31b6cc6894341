// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/kubelet"
)

// wedge stops processes; what it returns has them go on.
func wedge(t *testing.T, pids []int) (release func()) {
	t.Helper()
	all := func(s syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, s); err != nil {
				t.Error(err)
			}
		}
	}
	all(syscall.SIGSTOP)
	var once sync.Once
	return func() { once.Do(func() { all(syscall.SIGCONT) }) }
}

// TestAWedgedShimHoldsUpNobody: a daemon that starts while a pod's shim, ours or a foreign one, does not answer serves all others at once. The pod is back with its shim.
func TestAWedgedShimHoldsUpNobody(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		for _, whose := range []string{"berth-shim", h.foreign} {
			if whose == "" {
				continue
			}
			t.Run(whose, func(t *testing.T) {
				k := node(t, h)
				other := k.RunPod(k.PodConfig("other")).Start(k.Forever("main"))
				p := k.RunPod(k.PodConfig("pod"))
				c := p.Start(k.Forever("main"))
				arg := p.ID
				if whose == "berth-shim" {
					arg = filepath.Join(p.D.Dir, "state/pods", p.ID)
				}
				release := wedge(t, processesOf(t, whose, arg))
				defer release()
				if err := k.D.Kill(); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				if err := k.D.Launch(k.Ctx()); err != nil {
					t.Fatal(err)
				}
				serves := time.Since(begin)
				other.Exec("true")
				k.RunPod(k.PodConfig("new")).Start(k.Forever("main")).Exec("true")
				t.Logf("with %s wedged, the next daemon serves after %s; another pod's exec and a new pod have ended after %s", whose, serves.Round(time.Millisecond),
					time.Since(begin).Round(time.Millisecond))
				if serves > 20*time.Second {
					t.Error("that is too long")
				}
				release()
				kubelet.Eventually(t, 60*time.Second, func() string {
					if r, err := c.ExecSync(10, "echo", "back"); err != nil || string(r.Stdout) != "back\n" {
						return fmt.Sprintf("its container does not answer: %v, %v", r, err)
					}
					return ""
				})
				p.Stop()
				p.Remove()
			})
		}
	})
}

// TestAWedgedSandboxKeepsNoFiguresBack: a pod whose sandbox does not answer any more has the figures from before, and others have theirs.
func TestAWedgedSandboxKeepsNoFiguresBack(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		if !h.gvisor {
			t.Skip("its figures are its cgroup's")
		}
		k := node(t, h)
		other, pod := k.RunPod(k.PodConfig("other")), k.RunPod(k.PodConfig("pod"))
		containers := []*kubelet.Container{other.Start(k.Forever("main")), pod.Start(k.Forever("one")), pod.Start(k.Forever("two"))}
		figures := func() map[string]*cri.ContainerStats {
			begin := time.Now()
			of := map[string]*cri.ContainerStats{}
			for _, s := range containerStats(t, k) {
				of[s.GetAttributes().GetId()] = s
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("figures took %v", took)
			}
			return of
		}
		at := func(of map[string]*cri.ContainerStats, c *kubelet.Container) int64 {
			return of[c.ID].GetCpu().GetTimestamp()
		}
		var before map[string]*cri.ContainerStats
		kubelet.Eventually(t, 30*time.Second, func() string {
			before = figures()
			for _, c := range containers {
				if at(before, c) == 0 || before[c.ID].GetMemory().GetUsageBytes().GetValue() == 0 { // who sleeps may have used no CPU time that gVisor counts
					return "there are no figures of " + c.Spec.GetMetadata().GetName()
				}
			}
			return ""
		})
		defer wedge(t, processesOf(t, "runsc-sandbox", pod.ID))()
		kubelet.Eventually(t, 30*time.Second, func() string {
			now := figures()
			for _, c := range containers[1:] {
				if at(now, c) != at(before, c) {
					t.Errorf("figures of a stopped sandbox: %v, before: %v", now[c.ID], before[c.ID])
				}
			}
			if at(now, containers[0]) <= at(before, containers[0]) {
				return "another pod's figures are those from before"
			}
			return ""
		})
	})
}
