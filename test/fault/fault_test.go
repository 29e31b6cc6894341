// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// scene is one pod in the state before a call.
type scene struct {
	*rig
	config    *cri.PodSandboxConfig
	pod       *kubelet.Pod
	container *kubelet.Container
}

// main counts its starts in the pod's memory, so that a second start of the same container shows.
func (s *scene) main() *cri.ContainerConfig {
	return s.Shell("main", `trap "exit 0" TERM; echo x >>/dev/shm/starts; while :; do sleep 1000 & wait; done`)
}

func (s *scene) run()    { s.pod = s.RunPod(s.config) }
func (s *scene) create() { s.run(); s.container = s.pod.Create(s.main()) }
func (s *scene) start() {
	s.run()
	s.container = s.pod.Start(s.main())
	s.container.Exec("while [ ! -s /dev/shm/starts ]; do sleep 0.01; done") // the trap is set
	s.pod.Create(s.Forever("beside"))                                       // a second container must not be forgotten
}

func (s *scene) createCall() error {
	if err := os.MkdirAll(filepath.Dir(filepath.Join(s.config.LogDirectory, s.main().LogPath)), 0o755); err != nil {
		return err
	}
	r, err := s.D.Runtime.CreateContainer(s.Ctx(), &cri.CreateContainerRequest{PodSandboxId: s.pod.ID, Config: s.main(), SandboxConfig: s.config})
	if err == nil {
		s.container = &kubelet.Container{Pod: s.pod, ID: r.ContainerId, Spec: s.main()}
	}
	return err
}

// A call is killed at each of its writes. After the restart a retry must do what the call promised.
type call struct {
	name    string
	arrange func(*scene)
	act     func(*scene) error
	// promised checks what holds after the retry.
	promised func(*scene)
}

func (s *scene) stopContainer() error {
	_, err := s.D.Runtime.StopContainer(s.Ctx(), &cri.StopContainerRequest{ContainerId: s.container.ID, Timeout: 5})
	return err
}

func (s *scene) removeContainer() error {
	_, err := s.D.Runtime.RemoveContainer(s.Ctx(), &cri.RemoveContainerRequest{ContainerId: s.container.ID})
	return err
}

func (s *scene) stopPod() error {
	_, err := s.D.Runtime.StopPodSandbox(s.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: s.pod.ID})
	return err
}

func (s *scene) removePod() error {
	_, err := s.D.Runtime.RemovePodSandbox(s.Ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: s.pod.ID})
	return err
}

var calls = []call{
	{
		name:    "RunPodSandbox",
		arrange: func(*scene) {},
		act: func(s *scene) error {
			p, err := s.TryRunPod(s.config)
			if err == nil {
				s.pod = p
			}
			return err
		},
		promised: func(s *scene) { s.pod.Start(s.main()).Exec("true") },
	},
	{
		name:     "CreateContainer",
		arrange:  (*scene).run,
		act:      (*scene).createCall,
		promised: func(s *scene) { s.mustStart(); s.container.Exec("true") },
	},
	{
		name:    "StartContainer",
		arrange: (*scene).create,
		act:     func(s *scene) error { return s.container.TryStart() },
		promised: func(s *scene) {
			if n := strings.Count(s.container.Exec("while [ ! -s /dev/shm/starts ]; do sleep 0.01; done; cat /dev/shm/starts"), "x"); n != 1 {
				s.T.Errorf("the container was started %d times", n)
			}
		},
	},
	{
		name:    "StopContainer",
		arrange: (*scene).start,
		act:     (*scene).stopContainer,
		promised: func(s *scene) {
			if c := s.container.Status(); c.State != cri.ContainerState_CONTAINER_EXITED || c.FinishedAt == 0 {
				s.T.Errorf("the container is %v", c)
			}
			if c := s.container.Status(); c.ExitCode != 0 || c.Reason != "Completed" {
				s.T.Errorf("exit code %d, reason %s, want those of a polite end", c.ExitCode, c.Reason)
			}
		},
	},
	{
		name:    "RemoveContainer",
		arrange: (*scene).start,
		act:     (*scene).removeContainer,
		promised: func(s *scene) {
			_, err := s.D.Runtime.ContainerStatus(s.Ctx(), &cri.ContainerStatusRequest{ContainerId: s.container.ID})
			kubelet.WantError(s.T, err, []codes.Code{codes.NotFound})
			s.pod.Start(s.main()).Exec("true") // the name is free
		},
	},
	{
		name:    "StopPodSandbox",
		arrange: (*scene).start,
		act:     (*scene).stopPod,
		promised: func(s *scene) {
			if p := s.pod.Status(); p.State != cri.PodSandboxState_SANDBOX_NOTREADY {
				s.T.Errorf("the sandbox is %s", p.State)
			}
			if c := s.container.Status(); c.State != cri.ContainerState_CONTAINER_EXITED {
				s.T.Errorf("the container is %s", c.State)
			}
		},
	},
	{
		name:    "RemovePodSandbox",
		arrange: (*scene).start,
		act:     (*scene).removePod,
		promised: func(s *scene) {
			_, err := s.D.Runtime.PodSandboxStatus(s.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: s.pod.ID})
			kubelet.WantError(s.T, err, []codes.Code{codes.NotFound})
		},
	},
}

// mustStart starts the container; one that runs already is fine.
func (s *scene) mustStart() {
	s.T.Helper()
	if s.container.Status().State == cri.ContainerState_CONTAINER_RUNNING {
		return
	}
	if err := s.container.TryStart(); err != nil {
		s.T.Errorf("start: %v", err)
	}
}

func TestAKillAtEachWriteLosesNothing(t *testing.T) {
	for _, c := range calls {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, daemon.Spec{})
			r.Image = r.Pull(busyboxRef)
			startup, writes := r.count(t, c)
			if writes == 0 {
				t.Fatal("the call writes nothing")
			}
			t.Logf("%d writes", writes)
			for n := 1; n <= writes; n++ {
				for _, when := range []string{"before", "after"} {
					t.Run(fmt.Sprintf("%s write %d", when, n), func(t *testing.T) {
						r.kill(t, c, fmt.Sprintf("*:%d:%s", startup+n, when), "")
					})
				}
			}
			t.Run("and again while it recovers", func(t *testing.T) {
				for n := 1; n <= writes; n += 2 {
					for m := 1; m <= 3; m++ {
						r.kill(t, c, fmt.Sprintf("*:%d:after", startup+n), fmt.Sprintf("*:%d:before", m))
					}
				}
			})
		})
	}
}

func (r *rig) scene(t *testing.T, c call) *scene {
	t.Helper()
	own := *r.Kubelet
	own.T = t
	s := &scene{rig: &rig{&own, r.points}}
	s.config = s.PodConfig(strings.ToLower(c.name))
	return s
}

// count runs the call once undisturbed, and counts the writes of the start-up before it and its own.
func (r *rig) count(t *testing.T, c call) (startup, writes int) {
	t.Helper()
	s := r.scene(t, c)
	c.arrange(s)
	s.restart("")
	startup = s.passed()
	if err := c.act(s); err != nil {
		t.Fatalf("undisturbed: %v", err)
	}
	writes = s.passed() - startup
	c.promised(s)
	s.removeAll()
	return startup, writes
}

// kill runs the call in a daemon that dies by the plan, and its recovery in one that dies by the second plan.
func (r *rig) kill(t *testing.T, c call, plan, recovery string) {
	t.Helper()
	s := r.scene(t, c)
	defer func() {
		if t.Failed() {
			t.Logf("log:\n%s", s.D.LogTail(30))
		}
	}()
	s.restart("")
	before, err := s.D.Scope().Take()
	if err != nil {
		t.Fatal(err)
	}
	c.arrange(s)
	if s.restart(plan) {
		err := c.act(s)
		if !s.died() {
			t.Errorf("plan %s never came true: this case proves nothing", plan)
		} else if err != nil && status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
			t.Logf("the call that lost its daemon: %v", err)
		}
	}
	if recovery != "" {
		s.restart(recovery)
		s.died()
	}
	s.restart("")
	s.settled()
	s.consistent()
	s.retry(c)
	c.promised(s)
	s.consistent()
	s.removeAll()
	scope := s.D.Scope()
	scope.Descriptors = false // it is another process now
	left, err := scope.Leftovers(before)
	if err != nil || len(left) > 0 {
		t.Errorf("plan %s leaked: %v\n\t%s", plan, err, strings.Join(left, "\n\t"))
	}
}

// retry does what a kubelet does next: it looks, and calls again where the call has not come true.
func (s *scene) retry(c call) {
	s.T.Helper()
	if c.name == "StartContainer" {
		switch s.container.Status().State {
		case cri.ContainerState_CONTAINER_RUNNING:
			return
		case cri.ContainerState_CONTAINER_EXITED: // a start that was cut off: the kubelet makes a new one
			s.container.Remove()
			if err := s.createCall(); err != nil {
				s.T.Fatal(err)
			}
		}
	}
	if err := c.act(s); err != nil {
		s.T.Fatalf("retry: %v", err)
	}
}

// consistent checks what must hold at any time.
func (s *scene) consistent() {
	s.T.Helper()
	pods, err := s.D.Runtime.ListPodSandbox(s.Ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		s.T.Fatal(err)
	}
	ready, uids := map[string]bool{}, map[string]bool{}
	for _, p := range pods.Items {
		r, err := s.D.Runtime.PodSandboxStatus(s.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if status.Code(err) == codes.NotFound {
			continue // a removal that recovery finishes in the background
		} else if err != nil {
			s.T.Fatal(err)
		}
		st := r.GetStatus()
		if st.State != p.State {
			s.T.Errorf("sandbox %s is %s in the list and %s by itself", p.Id, p.State, st.State)
		}
		if st.State == cri.PodSandboxState_SANDBOX_READY {
			if st.GetNetwork().GetIp() == "" {
				s.T.Errorf("sandbox %s is ready and has no IP", p.Id)
			}
			if uids[p.Metadata.Uid] {
				s.T.Errorf("pod %s has two ready sandboxes", p.Metadata.Uid)
			}
			ready[p.Id], uids[p.Metadata.Uid] = true, true
		}
	}
	containers, err := s.D.Runtime.ListContainers(s.Ctx(), &cri.ListContainersRequest{})
	if err != nil {
		s.T.Fatal(err)
	}
	for _, c := range containers.Containers {
		one := &kubelet.Container{Pod: &kubelet.Pod{Kubelet: s.Kubelet, ID: c.PodSandboxId}, ID: c.Id}
		st, err := s.D.Runtime.ContainerStatus(s.Ctx(), &cri.ContainerStatusRequest{ContainerId: c.Id})
		if status.Code(err) == codes.NotFound {
			continue // a removal that recovery finishes in the background
		} else if err != nil {
			s.T.Fatal(err)
		}
		if st.Status.State != c.State {
			s.T.Errorf("container %s is %s in the list and %s by itself", c.Id, c.State, st.Status.State)
		}
		if c.State == cri.ContainerState_CONTAINER_RUNNING {
			if !ready[c.PodSandboxId] {
				s.T.Errorf("container %s runs in a sandbox that is not ready", c.Id)
			}
			one.Exec("true")
		}
	}
}

// settled waits for what recovery finishes in the background: stops and removals that the kill cut off.
func (s *scene) settled() {
	s.T.Helper()
	kubelet.Eventually(s.T, 10*time.Second, func() string {
		pods, err := s.D.Runtime.ListPodSandbox(s.Ctx(), &cri.ListPodSandboxRequest{})
		if err != nil {
			return err.Error()
		}
		ready := map[string]bool{}
		for _, p := range pods.Items {
			ready[p.Id] = p.State == cri.PodSandboxState_SANDBOX_READY
		}
		containers, err := s.D.Runtime.ListContainers(s.Ctx(), &cri.ListContainersRequest{})
		if err != nil {
			return err.Error()
		}
		for _, c := range containers.Containers {
			if c.State == cri.ContainerState_CONTAINER_RUNNING && !ready[c.PodSandboxId] {
				return "container " + c.Id + " runs in a sandbox that is not ready"
			}
		}
		return ""
	})
}

// removeAll stops and removes each sandbox that is listed, as a kubelet's collector does.
func (s *scene) removeAll() {
	s.T.Helper()
	pods, err := s.D.Runtime.ListPodSandbox(s.Ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		s.T.Fatal(err)
	}
	for _, p := range pods.Items {
		(&kubelet.Pod{Kubelet: s.Kubelet, ID: p.Id}).Remove()
	}
	containers, err := s.D.Runtime.ListContainers(s.Ctx(), &cri.ListContainersRequest{})
	if err != nil || len(containers.Containers) > 0 {
		s.T.Errorf("containers are left: %v, %v", containers.GetContainers(), err)
	}
}
