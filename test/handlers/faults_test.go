// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// faultCase is a shim that fails at some steps, and what the CRI's client is told if that is at the start of its pod.
type faultCase struct {
	name, faults string
	start        []string // parts of the error; nil: the pod starts
}

func faultCases() (all []faultCase) {
	all = append(all, faultCase{name: "none"})
	for _, fault := range []string{"hangs", "dies", "garbage", "refuses"} {
		for _, step := range []string{"start", "Create", "Connect", "Start"} {
			want := []string{step}
			switch {
			case step == "start" && fault == "garbage":
				want = []string{`"hello" is no address`}
			case fault == "refuses":
				want = append(want, "refused by the test")
			case fault == "garbage":
				want = append(want, "garbage")
			case step == "start" && fault == "hangs":
				want = append(want, "has not ended in its time")
			case step == "start":
				want = append(want, "killed")
			case fault == "hangs":
				want = append(want, "does not answer")
			case fault == "dies":
				want = append(want, "gone")
			}
			all = append(all, faultCase{step + "-" + fault, step + "=" + fault, want})
		}
		for _, step := range []string{"Wait", "Kill", "Delete", "Shutdown", "delete"} {
			all = append(all, faultCase{name: step + "-" + fault, faults: step + "=" + fault})
		}
		// Nobody is left who would clear up.
		all = append(all, faultCase{"start-dies-delete-" + fault, "start=dies delete=" + fault, []string{"start", "killed"}},
			faultCase{"create-dies-delete-" + fault, "Create=dies delete=" + fault, []string{"Create", "gone"}},
			faultCase{"create-hangs-kill-hangs-delete-" + fault, "Create=hangs Kill=hangs delete=" + fault, []string{"Create", "does not answer"}},
			faultCase{name: "wait-dies-delete-" + fault, faults: "Wait=dies delete=" + fault},
			faultCase{name: "kill-hangs-delete-" + fault, faults: "Kill=hangs delete=" + fault})
	}
	for i := range all { // the program's actions are in lower case, its service's methods are not
		all[i].name = strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(all[i].name, "start-", "action-start-"), "delete-", "action-delete-"))
	}
	return all
}

// config is a handler for the case, whose program lies in dir.
func (c faultCase) config(dir string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, c.name)
	program := filepath.Join(dir, fakeName)
	err = errors.Join(os.Mkdir(dir, 0o755), os.Symlink(self, program), os.WriteFile(filepath.Join(dir, faultsName), []byte(c.faults), 0o600))
	return fmt.Sprintf("\n[runtimes.%s]\ntype = \"shim\"\npath = %q\n", c.name, program), err
}

// TestAShimMayFailAtEveryStep is a node with a handler for each case: a start that fails says why and leaves nothing; a pod that started can be stopped and
// removed, whatever its shim does; all that time another pod is served.
func TestAShimMayFailAtEveryStep(t *testing.T) {
	dir, err := os.MkdirTemp("", "bf") // sockets want short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var config string
	for _, c := range faultCases() {
		text, err := c.config(dir)
		if err != nil {
			t.Fatal(err)
		}
		config += text
	}
	begin := time.Now()
	d := daemon.Start(t, daemon.Spec{Config: config})
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("shims that do not answer hold up the start of the daemon: it takes %s", took)
	}
	k := &kubelet.Kubelet{T: t, D: d}
	if err := d.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	k.Image = k.Pull(busyboxRef)
	g := k.RunPod(k.PodConfig("good")).Start(k.Forever("main"))
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() { serveAll(t, g, stop) })
	t.Run("cases", func(t *testing.T) {
		for _, c := range faultCases() {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(&kubelet.Kubelet{T: t, D: d, Image: k.Image, Handler: c.name})
			})
		}
	})
	close(stop)
	others.Wait()
}

// serveAll looks whether a container of another pod is served until it is told to stop.
func serveAll(t *testing.T, c *kubelet.Container, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(500 * time.Millisecond):
		}
		if r, err := c.ExecSync(20, "echo", "fine"); err != nil || string(r.Stdout) != "fine\n" {
			t.Errorf("a pod beside: %v, %v", r, err)
			return
		}
	}
}

func (c faultCase) run(k *kubelet.Kubelet) {
	config := k.PodConfig("pod-" + c.name)
	p, err := k.TryRunPod(config)
	for err != nil && status.Code(err) == codes.DeadlineExceeded { // joins the one in flight
		p, err = k.TryRunPod(config)
	}
	if c.start != nil {
		for _, want := range c.start {
			if err == nil || !strings.Contains(err.Error(), want) {
				k.T.Errorf("got %v, want an error with %q", err, want)
			}
		}
		list, err := k.D.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{})
		if err != nil || slices.ContainsFunc(list.GetItems(), func(s *cri.PodSandbox) bool { return s.Metadata.Name == config.Metadata.Name }) {
			k.T.Errorf("a pod that did not start is listed, or %v", err)
		}
		return
	}
	if err != nil {
		k.T.Fatal(err)
	}
	box, err := p.TryCreate(k.Forever("main"))
	if err == nil {
		err = box.TryStart()
	}
	if err != nil && !strings.Contains(c.faults, "Wait=") { // its pod may be known to be lost by then
		k.T.Errorf("start: %v", err)
	}
	gone(k, p)
}

// gone stops and removes the pod as a kubelet does, which tries again.
func gone(k *kubelet.Kubelet, p *kubelet.Pod) {
	begin := time.Now()
	for tries := 1; ; tries++ {
		_, err := k.D.Runtime.StopPodSandbox(k.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
		if err == nil {
			_, err = k.D.Runtime.RemovePodSandbox(k.Ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
		}
		if err == nil || status.Code(err) == codes.NotFound {
			k.T.Logf("gone after %s and %d tries", time.Since(begin).Round(time.Millisecond), tries)
			return
		}
		if time.Since(begin) > 4*time.Minute {
			k.T.Fatalf("the pod sticks: %v", err)
		}
		k.T.Logf("try %d: %v", tries, err)
		time.Sleep(time.Second)
	}
}
