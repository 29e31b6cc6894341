// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

func TestPodsGoOnWhenTheDaemonIsKilled(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("survivor"))
	spec := k.Shell("main", "i=0; while :; do echo tick $((i=i+1)); sleep 0.02; done")
	c := p.Start(spec)
	created := p.Create(k.Forever("created"))
	stopped := k.RunPod(k.PodConfig("stopped"))
	stopped.Stop()
	c.WaitOutput("tick 3\n")
	podBefore, before, idle := p.Status(), c.Status(), stopped.Status()
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	if got := c.Status(); !proto.Equal(got, before) && !onContainerd() {
		t.Errorf("container status changed from\n%v to\n%v", before, got)
	}
	if got := p.Status(); !proto.Equal(got, podBefore) && !onContainerd() {
		t.Errorf("sandbox status changed from\n%v to\n%v", podBefore, got)
	}
	equal(t, "stopped sandbox", stopped.Status().State, idle.State)
	equal(t, "created container", created.Status().State, cri.ContainerState_CONTAINER_CREATED)
	equal(t, "exec", c.Exec("echo fine"), "fine")
	if err := created.TryStart(); err != nil {
		t.Error(err)
	}
	for i, l := range c.Log() {
		if want := fmt.Sprintf("tick %d", i+1); l.Content != want {
			t.Fatalf("line %d is %q, want %q", i, l.Content, want)
		}
	}
	seen := len(c.Log())
	time.Sleep(200 * time.Millisecond)
	if len(c.Log()) <= seen {
		t.Error("the log does not grow any more")
	}
	c.Stop(0)
	c.Remove()
	c = p.Start(spec) // the pod still takes containers
	equal(t, "new container", c.Exec("echo fine"), "fine")
}

func TestExitsDuringAnOutageAreReportedAsTheyWere(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("outage"))
	c := p.Start(k.Shell("main", "while [ ! -e /dev/shm/go ]; do sleep 0.01; done; exit 23"))
	oom := k.Shell("oom", `while [ ! -e /dev/shm/go ]; do sleep 0.01; done; x=a; while :; do x="$x$x"; done`)
	oom.Linux.Resources.MemoryLimitInBytes, oom.Linux.Resources.MemorySwapLimitInBytes = 16<<20, 16<<20
	o := p.Start(oom)
	// An exec ends with the daemon that asked for it; what it has left running does not.
	c.Exec(fmt.Sprintf("(sleep %g; touch /dev/shm/go) >/dev/null 2>&1 &", daemon.Slow(2*time.Second).Seconds()))
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	time.Sleep(daemon.Slow(4 * time.Second))
	up := time.Now()
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	s := c.WaitExit()
	equal(t, "exit code", s.ExitCode, 23)
	equal(t, "reason", s.Reason, "Error")
	if at := time.Unix(0, s.FinishedAt); at.Before(killed) || at.After(up) {
		t.Errorf("finished at %s, want between %s and %s", at, killed, up)
	}
	s = o.WaitExit()
	equal(t, "exit code of the OOM", s.ExitCode, 137)
	equal(t, "reason of the OOM", s.Reason, "OOMKilled")
}

func TestThePodOfAKilledShimIsReportedAndCleaned(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	for _, daemonDown := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon down %v", daemonDown), func(t *testing.T) {
			k := node(t, daemon.Spec{})
			p := k.RunPod(k.PodConfig("orphaned"))
			c := p.Start(k.Forever("main"))
			if daemonDown {
				if err := k.D.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			signalShim(t, k, p, syscall.SIGKILL)
			if daemonDown {
				if err := k.D.Launch(k.Ctx()); err != nil {
					t.Fatal(err)
				}
			}
			s := c.WaitExit()
			if s.ExitCode == 0 || s.Reason == "Completed" {
				t.Errorf("exit code %d, reason %q: nobody knows that it succeeded", s.ExitCode, s.Reason)
			}
			all, err := k.D.Scope().Processes()
			if err != nil {
				t.Fatal(err)
			}
			for _, proc := range all {
				if strings.HasPrefix(proc.Command, "sh -c trap") {
					t.Errorf("the container is reported as exited and still runs: %s", proc)
				}
			}
			k.RunPod(k.PodConfig("next")).Start(k.Forever("main")).Exec("true")
		})
	}
}

// signalShim sends a signal to the pod's shim.
func signalShim(t *testing.T, k *kubelet.Kubelet, p *kubelet.Pod, sig syscall.Signal) {
	t.Helper()
	all, err := k.D.Scope().Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, proc := range all {
		if strings.Contains(proc.Command, "berth-shim serve") && strings.Contains(proc.Command, p.ID) {
			if err := syscall.Kill(proc.PID, sig); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no shim of pod %s among %v", p.ID, all)
}

func TestAShimThatDoesNotAnswerAtStartUpKeepsItsPod(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("silent"))
	c := p.Start(k.Forever("main"))
	signalShim(t, k, p, syscall.SIGSTOP)
	if err := k.D.Restart(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	equal(t, "container", c.Status().State, cri.ContainerState_CONTAINER_RUNNING)
	k.RunPod(k.PodConfig("other")).Start(k.Forever("main")).Exec("true")
	signalShim(t, k, p, syscall.SIGCONT)
	c.Stop(0) // waits for the shim
	equal(t, "exit code", c.Status().ExitCode, 137)
	equal(t, "exec", p.Start(k.Forever("next")).Exec("echo fine"), "fine")
}

func TestARebootEndsAllPodsAndLeaksNothing(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("rebooted"))
	c := p.Start(k.Forever("main"))
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	reboot(t, k)
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	equal(t, "sandbox", p.Status().State, cri.PodSandboxState_SANDBOX_NOTREADY)
	s := c.Status()
	equal(t, "container", s.State, cri.ContainerState_CONTAINER_EXITED)
	if s.ExitCode == 0 || s.FinishedAt == 0 {
		t.Errorf("exit code %d, finished at %d", s.ExitCode, s.FinishedAt)
	}
	if err := k.D.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	next := k.PodConfig("rebooted")
	next.Metadata.Uid, next.Metadata.Attempt = p.Config.Metadata.Uid, 1
	k.RunPod(next).Start(k.Forever("main")).Exec("true")
}

// reboot does to the machine what a reboot does to the runtime's things: processes, mounts, namespaces, links
// and the state folder vanish, and the records are of another boot.
func reboot(t *testing.T, k *kubelet.Kubelet) {
	t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		all, err := k.D.Scope().Processes()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 {
			break
		}
		for _, proc := range all {
			syscall.Kill(proc.PID, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], k.D.Dir+"/") {
			syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	if err := k.D.Scope().DropRules(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{k.D.State, k.D.Netns} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	old, other := bytes.TrimSpace(boot), []byte("00000000-0000-4000-8000-000000000000")
	changed := 0
	records, _ := filepath.Glob(k.D.Root + "/pods/*/*.json")
	more, _ := filepath.Glob(k.D.Root + "/pods/*/containers/*.json")
	for _, path := range append(records, more...) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, old) { // in the record's header, which no checksum covers
			changed++
			if err := os.WriteFile(path, bytes.ReplaceAll(data, old, other), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if changed == 0 {
		t.Fatal("no record names its boot")
	}
}

func TestAnUnreadableRecordIsSetAsideAndStopsNothing(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	bad, good := k.RunPod(k.PodConfig("bad")), k.RunPod(k.PodConfig("good"))
	bad.Start(k.Forever("main"))
	c := good.Start(k.Forever("main"))
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.D.Root, "pods", bad.ID, "sandbox.json"), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	c.Exec("true")
	_, err := k.D.Runtime.PodSandboxStatus(k.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: bad.ID})
	wantError(t, err, notFound, bad.ID)
	aside, err := filepath.Glob(k.D.Root + "/quarantine/*")
	if err != nil || len(aside) == 0 {
		t.Errorf("nothing is set aside: %v", err)
	}
	for _, path := range aside { // that much is meant to be left
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	contains(t, "log", k.D.Log(), bad.ID)
}

// How long a start takes with so many pods, a second at most, is measured by test/bench (density): here a bound tells a hang only.
func TestADaemonWithAHundredPodsFindsThemAll(t *testing.T) {
	berthOnly(t)
	k := node(t, daemon.Spec{})
	const pods = 100
	all := make([]*kubelet.Container, 0, pods)
	for i := range pods {
		all = append(all, k.RunPod(k.PodConfig(fmt.Sprintf("p%d", i))).Start(k.Forever("main")))
	}
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the daemon served after %s", took)
	}
	listed, err := k.D.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{})
	if err != nil || len(listed.Items) != pods {
		t.Errorf("%d pods are listed right after the start, want %d; %v", len(listed.GetItems()), pods, err)
	}
	for _, c := range all {
		equal(t, "state", c.Status().State, cri.ContainerState_CONTAINER_RUNNING)
		equal(t, "state of the pod", c.Pod.Status().State, cri.PodSandboxState_SANDBOX_READY)
	}
	all[0].Exec("true") // its shim answers the new daemon
	all[pods-1].Exec("true")
}
