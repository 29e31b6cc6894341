// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/kubelet"
)

func TestLife(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		p := k.RunPod(k.PodConfig("pod"))
		c := p.Start(k.Shell("main", `echo out; echo err >&2; trap "exit 7" TERM; while :; do sleep 1000 & wait; done`))
		c.WaitOutput("out\n")
		kubelet.Eventually(t, 20*time.Second, func() string { // the two streams reach the log each by itself
			if got := c.Output("stderr"); got != "err\n" {
				return fmt.Sprintf("stderr in the log: %q", got)
			}
			return ""
		})
		if got := c.Exec("ip -4 addr show eth0 2>/dev/null || ifconfig eth0"); !strings.Contains(got, p.IP()) {
			t.Errorf("address %s is not on eth0: %s", p.IP(), got)
		}
		r, err := c.ExecSync(10, "sh", "-c", "echo o; echo e >&2; exit 3")
		if err != nil || r.ExitCode != 3 || string(r.Stdout) != "o\n" || string(r.Stderr) != "e\n" {
			t.Errorf("exec: %v, %v", r, err)
		}
		begin := time.Now()
		if _, err := c.ExecSync(1, "sleep", "60"); err == nil {
			t.Error("an exec outlives its timeout")
		} else if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("the timeout of an exec took %s", took)
		}
		if !slices.Contains(h.no, "update") {
			if _, err := k.D.Runtime.UpdateContainerResources(k.Ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: c.ID,
				Linux: &cri.LinuxContainerResources{CpuShares: 333}}); err != nil {
				t.Errorf("update: %v", err)
			}
		}
		second := p.Start(k.Shell("second", "exit 5"))
		if st := second.WaitExit(); st.ExitCode != 5 {
			t.Errorf("exit code of a second container: %d", st.ExitCode)
		}
		c.Stop(20)
		if st := c.Status(); st.ExitCode != 7 {
			t.Errorf("exit code after the stop signal: %d", st.ExitCode)
		}
		deaf := p.Start(k.Shell("deaf", `trap "" TERM; echo ready; while :; do sleep 1000 & wait; done`))
		deaf.WaitOutput("ready\n")
		deaf.Stop(1)
		if st := deaf.Status(); st.ExitCode != 137 {
			t.Errorf("exit code of a killed container: %d", st.ExitCode)
		}
		bad := p.Create(k.ContainerConfig("bad", "/no/such/program"))
		if err := bad.TryStart(); err == nil {
			t.Error("a program that is not there was started")
		}
		if st := bad.Status(); st.State != cri.ContainerState_CONTAINER_EXITED {
			t.Errorf("state after a failed start: %s", st.State)
		}
		c.Remove()
		p.Stop()
		p.Remove()
	})
}

// TestEveryExitCodeArrives is about containers that end at once: many, for a race shows now and then.
func TestEveryExitCodeArrives(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		p := k.RunPod(k.PodConfig("pod"))
		p.Start(k.Forever("main")) // the shim stays
		for i := range 25 {
			want := int32(1 + i%3)
			c := p.Start(k.Shell(fmt.Sprintf("c%d", i), fmt.Sprintf("echo line; exit %d", want)))
			if st := c.WaitExit(); st.ExitCode != want || st.StartedAt == 0 || st.FinishedAt < st.StartedAt {
				t.Errorf("a container that exits with %d: %v", want, st)
			}
			if got := c.Output("stdout"); got != "line\n" {
				t.Errorf("container %s: its log has %q", c.ID, got)
			}
			c.Remove()
		}
	})
}

func TestTheDaemonRestarts(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		p := k.RunPod(k.PodConfig("pod"))
		c := p.Start(k.Shell("main", `i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo tick $i; sleep 0.1; done; exit 9`))
		ends := p.Start(k.Shell("ends", "sleep 2; exit 4"))
		c.WaitOutput("tick 2\n")
		if err := k.D.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2500 * time.Millisecond)
		if err := k.D.Launch(k.Ctx()); err != nil {
			t.Fatal(err)
		}
		if st := ends.WaitExit(); st.ExitCode != 4 {
			t.Errorf("exit while the daemon was away: %d", st.ExitCode)
		}
		for i, l := range c.Log() {
			if want := fmt.Sprintf("tick %d", i+1); l.Content != want {
				t.Fatalf("line %d of the log is %q, want %q", i, l.Content, want)
			}
		}
		if n := len(c.Log()); n < 10 {
			t.Errorf("%d lines: the log did not grow while the daemon was away", n)
		}
		c.Exec("touch /tmp/stop")
		if st := c.WaitExit(); st.ExitCode != 9 {
			t.Errorf("exit code %d", st.ExitCode)
		}
		p.Start(k.Forever("new"))
	})
}

func TestTheForeignShimDies(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		if h.foreign == "" {
			t.Skip("its shim is ours")
		}
		dies(t, h, func(p *kubelet.Pod) []int { return processesOf(t, h.foreign, p.ID) })
	})
}

func TestOurShimDies(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		dies(t, h, func(p *kubelet.Pod) []int {
			return processesOf(t, "berth-shim", filepath.Join(p.D.Dir, "state/pods", p.ID))
		})
	})
}

// dies kills what holds up a pod: its containers must end, it must be stopped and removed, and others must not be affected.
func dies(t *testing.T, h handler, victims func(*kubelet.Pod) []int) {
	k := node(t, h)
	other := k.RunPod(k.PodConfig("other")).Start(k.Forever("main"))
	p := k.RunPod(k.PodConfig("pod"))
	c := p.Start(k.Forever("main"))
	for _, pid := range victims(p) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if st := c.WaitExit(); st.ExitCode == 0 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	kubelet.Eventually(t, 30*time.Second, func() string {
		if st := p.Status(); st.State == cri.PodSandboxState_SANDBOX_READY {
			return "the pod is still ready"
		}
		return ""
	})
	p.Stop()
	p.Remove()
	k.RunPod(k.PodConfig("pod")).Start(k.Forever("main"))
	if st := other.Status(); st.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container of another pod is %s", st.State)
	}
}

// processesOf finds the processes of a program that have an argument.
func processesOf(t *testing.T, program, arg string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		var pid int
		if _, scan := fmt.Sscan(e.Name(), &pid); err != nil || scan != nil {
			continue
		}
		args := strings.Split(string(line), "\x00")
		if strings.HasSuffix(args[0], program) && slices.Contains(args, arg) {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		t.Fatalf("no process of %s for %s", program, arg)
	}
	return pids
}
