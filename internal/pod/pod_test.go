// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
)

// created makes a node with one pod of one container that is not started.
func created(t *testing.T) (n *node, sandbox, container string) {
	t.Helper()
	n = newNode(t, newWorld(), t.TempDir())
	sandbox, err := n.RunSandbox(t.Context(), podConfig(), "")
	if err != nil {
		t.Fatal(err)
	}
	container, err = n.CreateContainer(t.Context(), sandbox, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	return n, sandbox, container
}

// running makes a node with one pod of one running container.
func running(t *testing.T) (n *node, sandbox, container string) {
	t.Helper()
	n, sandbox, container = created(t)
	if err := n.StartContainer(t.Context(), container); err != nil {
		t.Fatal(err)
	}
	return n, sandbox, container
}

// theTask is the container's process.
func (n *node) theTask(sandbox, container string) *fakeTask {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.w.shims[sandbox].tasks[container]
}

func mustStatus(t *testing.T, n *node, container string) *ContainerStatus {
	t.Helper()
	c, err := n.ContainerByID(container)
	if err != nil {
		t.Fatal(err)
	}
	return c.Status()
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 500 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("never: " + what)
}

func TestARepeatedRequestJoinsTheOneInFlight(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	ids := make(chan string, 8)
	for range 8 {
		go func() {
			id, err := n.RunSandbox(t.Context(), podConfig(), "")
			if err != nil {
				t.Error(err)
			}
			ids <- id
		}()
	}
	first := <-ids
	for range 7 {
		if id := <-ids; id != first {
			t.Errorf("got two sandboxes, %s and %s", first, id)
		}
	}
	other := podConfig()
	other.Hostname = "other"
	if _, err := n.RunSandbox(t.Context(), other, ""); !errors.Is(err, ErrExists) {
		t.Errorf("same name, other configuration: %v", err)
	}
}

func TestTheCallersPatienceEndsNotTheWork(t *testing.T) {
	n, _, c := running(t)
	n.theTask(n.Sandboxes()[0].ID, c).deaf = true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := n.StopContainer(ctx, c, time.Hour)
	if !errors.Is(err, ErrInFlight) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "StopContainer has been running for") {
		t.Fatalf("got %v", err)
	}
	if work := n.Operations(); len(work) != 1 || work[0].Kind != "StopContainer" || work[0].ID != c || !strings.Contains(work[0].Object, c) || work[0].Since.IsZero() {
		t.Errorf("under way: %+v", work)
	}
	// A later, shorter stop overrides the one in flight.
	if err := n.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("got %+v", st)
	}
}

func TestAForcedRemovalCutsAPatientStopShort(t *testing.T) {
	n, s, c := running(t)
	n.theTask(s, c).deaf = true
	stopped := make(chan error, 1)
	go func() { stopped <- n.StopContainer(t.Context(), c, time.Hour) }()
	time.Sleep(20 * time.Millisecond)
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}

func TestStopAndRemoveAreIdempotent(t *testing.T) {
	n, s, c := running(t)
	for range 2 {
		for name, err := range map[string]error{
			"stop container": n.StopContainer(t.Context(), c, 0), "remove container": n.RemoveContainer(t.Context(), c),
			"stop sandbox": n.StopSandbox(t.Context(), s), "unknown": n.StopSandbox(t.Context(), strings.Repeat("0", 64)),
		} {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for range 2 {
		if err := n.RemoveSandbox(t.Context(), s); err != nil {
			t.Error(err)
		}
	}
	n.mustBeEmpty(t)
}

// What a removal left half-done is not what a creation of the same name asks for: it goes first.
func TestWhatIsHalfRemovedIsNeitherStartedNorReturned(t *testing.T) {
	n, s, old := created(t)
	n.w.failNext("release rootfs")
	if err := n.RemoveContainer(t.Context(), old); !errors.Is(err, errFault) {
		t.Fatalf("removal: %v, want the fault", err)
	}
	if err := n.StartContainer(t.Context(), old); !errors.Is(err, ErrState) {
		t.Errorf("start of a container that is half removed: %v, want ErrState", err)
	}
	n.w.failNext("release rootfs")
	if id, err := n.CreateContainer(t.Context(), s, containerConfig("c")); !errors.Is(err, errFault) {
		t.Errorf("creation beside what cannot be removed: %q, %v, want the fault", id, err)
	}
	c, err := n.CreateContainer(t.Context(), s, containerConfig("c"))
	if err != nil || c == old {
		t.Fatalf("creation: %s, %v, want another than %s", c, err, old)
	}
	if err := n.StartContainer(t.Context(), c); err != nil {
		t.Error(err)
	}
	n.w.failNext("release cgroup")
	if err := n.RemoveSandbox(t.Context(), s); !errors.Is(err, errFault) {
		t.Fatalf("removal: %v, want the fault", err)
	}
	next, err := n.RunSandbox(t.Context(), podConfig(), "")
	if err != nil || next == s {
		t.Fatalf("run: %s, %v, want another than %s", next, err, s)
	}
	if err := n.RemoveSandbox(t.Context(), next); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}

func TestAKillThatFailsIsSentAgain(t *testing.T) {
	n, s, c := running(t)
	n.w.failNext("kill task")
	if err := n.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	if st := mustStatus(t, n, c); st.ExitCode != 128+int32(sigkill) {
		t.Errorf("exit code %d, want SIGKILL's", st.ExitCode)
	}
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}

func TestACgroupOfSeveralPodsGoesWithTheLast(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	n := newNode(t, w, dir)
	run := func(uid string) string {
		t.Helper()
		c := podConfig()
		c.Metadata.Uid, c.Linux.CgroupParent = uid, "/shared"
		id, err := n.RunSandbox(t.Context(), c, "")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	exists := func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.held["cgroup /shared"] }
	first, second := run("1"), run("2")
	if err := n.RemoveSandbox(t.Context(), first); err != nil || !exists() {
		t.Fatalf("the first pod took the cgroup of the second along: %v", err)
	}
	third := run("3")
	var gone sync.WaitGroup
	for _, id := range []string{second, third} {
		gone.Go(func() {
			if err := n.RemoveSandbox(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	gone.Wait()
	if exists() {
		t.Error("the cgroup is left")
	}
	n.mustBeEmpty(t)
}

func TestAnExitKeepsItsCodeAndTime(t *testing.T) {
	n, s, c := running(t)
	n.w.mu.Lock()
	n.w.end(n.w.shims[s], c, 7)
	n.w.mu.Unlock()
	eventually(t, "exited", func() bool { return mustStatus(t, n, c).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	if st := mustStatus(t, n, c); st.ExitCode != 7 || st.Reason != ReasonError || st.FinishedAt != time.Unix(1000, 0).UnixNano() || st.PID != 0 {
		t.Errorf("got %+v", st)
	}
	if err := n.StartContainer(t.Context(), c); !errors.Is(err, ErrState) {
		t.Errorf("start of an exited container: %v", err)
	}
}

func TestAnExitWhileTheDaemonIsDownIsReportedTrue(t *testing.T) {
	n, s, c := running(t)
	n.w.mu.Lock()
	n.w.life++ // kill -9
	n.w.end(n.w.shims[s], c, 9)
	n.w.mu.Unlock()
	n = n.restart(t)
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 9 || st.FinishedAt != time.Unix(1000, 0).UnixNano() {
		t.Errorf("got %+v", st)
	}
}

func TestARunningPodOutlivesTheDaemon(t *testing.T) {
	n, s, c := running(t)
	n = n.restart(t)
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.PID != 42 {
		t.Fatalf("got %+v", st)
	}
	// Its exit is seen by the new daemon.
	n.w.mu.Lock()
	n.w.end(n.w.shims[s], c, 0)
	n.w.mu.Unlock()
	eventually(t, "exited", func() bool { return mustStatus(t, n, c).Reason == ReasonCompleted })
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}

func TestALostShimEndsThePodAndLeaksNothing(t *testing.T) {
	n, s, c := running(t)
	n.w.mu.Lock()
	close(n.w.shims[s].gone)
	delete(n.w.shims, s)
	n.w.mu.Unlock()
	eventually(t, "container exited", func() bool { return mustStatus(t, n, c).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	sb, err := n.SandboxByID(s)
	if err != nil || sb.Status().Ready || !strings.Contains(sb.Status().Why, "shim") {
		t.Fatalf("got %+v, %v", sb.Status(), err)
	}
	if st := mustStatus(t, n, c); st.ExitCode != 137 || !strings.Contains(st.Message, "shim") {
		t.Errorf("got %+v", st)
	}
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}

// silence makes the pod's shim answer nobody; the result ends that.
func (n *node) silence(sandbox string) (answer func()) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	silent := make(chan struct{})
	n.w.shims[sandbox].silent = silent
	return sync.OnceFunc(func() { close(silent) })
}

func TestASilentShimIsWaitedForAndKeepsNobodyElseWaiting(t *testing.T) {
	n, s, c := running(t)
	answer := n.silence(s)
	defer answer()
	n = n.restart(t)
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("while its shim is silent, the container is %v", st.State)
	}
	other := podConfig()
	other.Metadata.Name = "other"
	if _, err := n.RunSandbox(t.Context(), other, ""); err != nil {
		t.Errorf("another pod: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for what, err := range map[string]error{
		"StopContainer":  n.StopContainer(short, c, time.Second),
		"StopPodSandbox": n.StopSandbox(short, s),
	} {
		if !errors.Is(err, ErrInFlight) || !strings.Contains(err.Error(), "recovery") {
			t.Errorf("%s: %v", what, err)
		}
	}
	answer()
	task := n.theTask(s, c)
	task.deaf = true
	if err := n.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	if st := mustStatus(t, n, c); st.ExitCode != 137 || st.Message != "" {
		t.Errorf("got %+v", st)
	}
}

func TestAWedgedShimIsKilledWithItsPodWhenPatienceEnds(t *testing.T) {
	n, s, c := running(t)
	defer n.silence(s)()
	n.w.patience = 300 * time.Millisecond
	n = n.restart(t)
	eventually(t, "container exited", func() bool { return mustStatus(t, n, c).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}

func TestAfterARebootAllIsExitedAndTheNetworkReleased(t *testing.T) {
	n, s, c := running(t)
	n.w.mu.Lock()
	n.w.life++
	// The kernel forgets; what plugins keep on disk stays.
	for k := range n.w.held {
		if !strings.HasPrefix(k, "network ") && !strings.HasPrefix(k, "rootfs ") {
			delete(n.w.held, k)
		}
	}
	n.w.shims = map[string]*fakeShim{}
	n.w.mu.Unlock()
	m := New(n.cfg, n.parts, n.log)
	m.cfg.Boot = "boot-2"
	l := n.w.start()
	n.labels = newFakeLabels(l)
	m.parts = Parts{Runtime: fakeRuntime{l}, Network: fakeNetwork{l}, Images: fakeImages{l}, Host: fakeHost{l}, Specs: fakeSpecs{}, Labels: n.labels, Hooks: &fakeHooks{life: l}}
	if err := os.RemoveAll(n.cfg.State); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Manager = m
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("got %+v", st)
	}
	eventually(t, "the pod's addresses are released", func() bool {
		n.w.mu.Lock()
		defer n.w.mu.Unlock()
		return !n.w.held["network "+s]
	})
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}

func TestAnUnreadableRecordIsSetAsideAndItsPodReleased(t *testing.T) {
	n, s, _ := running(t)
	if err := os.WriteFile(filepath.Join(n.podsDir(), s, "sandbox.json"), []byte(`{"kind":"sandbox","ver`), 0o600); err != nil {
		t.Fatal(err)
	}
	n = n.restart(t)
	n.mustBeEmpty(t)
	aside, err := filepath.Glob(filepath.Join(n.cfg.Root, "quarantine", "*"))
	if err != nil || len(aside) != 1 {
		t.Errorf("set aside: %v, %v", aside, err)
	}
}

func TestRequestsThatCannotSucceedChangeNothing(t *testing.T) {
	n, s, c := running(t)
	before := n.w.calls
	bad := containerConfig("bad")
	bad.Image.Image = "absent"
	for name, f := range map[string]func() error{
		"no metadata":     func() error { _, err := n.RunSandbox(t.Context(), &runtimeapi.PodSandboxConfig{}, ""); return err },
		"unknown handler": func() error { _, err := n.RunSandbox(t.Context(), podConfig(), "kata"); return err },
		"unknown sandbox": func() error { _, err := n.CreateContainer(t.Context(), "none", containerConfig("x")); return err },
		"absent image":    func() error { _, err := n.CreateContainer(t.Context(), s, bad); return err },
		"no command":      func() error { _, err := n.ExecSync(t.Context(), c, nil, 0); return err },
		"no resources":    func() error { return n.UpdateResources(t.Context(), c, nil) },
		"empty ID":        func() error { return n.StartContainer(t.Context(), "") },
	} {
		if err := f(); err == nil {
			t.Errorf("%s: accepted", name)
		} else if name == "unknown handler" && !strings.Contains(err.Error(), "there is runc") {
			t.Errorf("%s: %v does not list the known ones", name, err)
		}
	}
	if n.w.calls != before {
		t.Errorf("bad requests had side effects: %v", n.w.trace[before:])
	}
	if len(n.Containers()) != 1 || len(n.Sandboxes()) != 1 {
		t.Error("bad requests left objects")
	}
}

func TestAFailedStartLeavesAnExitedContainer(t *testing.T) {
	w := newWorld()
	n := newNode(t, w, t.TempDir())
	s, err := n.RunSandbox(t.Context(), podConfig(), "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.CreateContainer(t.Context(), s, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	w.failNext("start task")
	if err := n.StartContainer(t.Context(), c); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != ReasonStartError ||
		st.ExitCode != 128 || !strings.Contains(st.Message, "injected fault") {
		t.Errorf("got %+v", st)
	}
}

func TestDecisionsAfterARestart(t *testing.T) {
	r, st := shimpb.Status_RUNNING, shimpb.Status_STOPPED
	for name, c := range map[string]struct {
		rec                 containerRecord
		alive, facts, begun bool
		t                   task
		want                verdict
	}{
		"creation cut off":              {containerRecord{}, true, false, true, task{}, rollBack},
		"created":                       {containerRecord{CreatedAt: 1}, true, false, false, task{}, keep},
		"start cut off before it ran":   {containerRecord{CreatedAt: 1}, true, false, true, task{true, shimpb.Status_CREATED}, unstart},
		"start cut off, runs":           {containerRecord{CreatedAt: 1}, true, false, true, task{true, r}, adoptStarted},
		"start cut off, shim gone":      {containerRecord{CreatedAt: 1}, false, false, true, task{}, unstart},
		"start cut off, ran, shim gone": {containerRecord{CreatedAt: 1}, false, true, true, task{}, lose},
		"runs":                          {containerRecord{CreatedAt: 1, StartedAt: 2}, true, false, true, task{true, r}, adopt},
		"exited meanwhile":              {containerRecord{CreatedAt: 1, StartedAt: 2}, true, true, true, task{true, st}, settleExit},
		"ran, shim gone":                {containerRecord{CreatedAt: 1, StartedAt: 2}, false, false, true, task{}, lose},
		"ran, shim forgot":              {containerRecord{CreatedAt: 1, StartedAt: 2}, true, false, true, task{}, lose},
		"exited":                        {containerRecord{CreatedAt: 1, StartedAt: 2, FinishedAt: 3}, true, true, true, task{}, settleExit},
		"removal cut off":               {containerRecord{CreatedAt: 1, RemovedAt: 3}, true, false, false, task{}, finishRemoval},
	} {
		if got := decideContainer(c.rec, c.alive, c.facts, c.begun, c.t); got != c.want {
			t.Errorf("%s: got %d, want %d", name, got, c.want)
		}
	}
	for name, c := range map[string]struct {
		rec  sandboxRecord
		o    observed
		want verdict
	}{
		"creation cut off": {sandboxRecord{}, observed{true, true}, rollBack},
		"lives":            {sandboxRecord{ReadyAt: 1}, observed{true, true}, adopt},
		"shim gone":        {sandboxRecord{ReadyAt: 1}, observed{true, false}, lose},
		"rebooted":         {sandboxRecord{ReadyAt: 1}, observed{false, false}, lose},
		"stopped":          {sandboxRecord{ReadyAt: 1, StoppedAt: 2, Begun: []string{stepState}}, observed{true, true}, keep},
		"stop cut off":     {sandboxRecord{ReadyAt: 1, StoppedAt: 2, Begun: []string{stepState, stepNetwork}}, observed{true, true}, finishStop},
		"removal cut off":  {sandboxRecord{ReadyAt: 1, StoppedAt: 2, RemovedAt: 3}, observed{true, true}, finishRemoval},
	} {
		if got := decideSandbox(c.rec, c.o); got != c.want {
			t.Errorf("%s: got %d, want %d", name, got, c.want)
		}
	}
}

func TestATargetIsLookedForAtTheStart(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	s, err := n.RunSandbox(t.Context(), podConfig(), "")
	if err != nil {
		t.Fatal(err)
	}
	make := func(config *runtimeapi.ContainerConfig) (string, error) {
		return n.CreateContainer(t.Context(), s, config)
	}
	main, err := make(containerConfig("main"))
	if err != nil {
		t.Fatal(err)
	}
	target := func(name, id string) *runtimeapi.ContainerConfig {
		c := containerConfig(name)
		c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id}}}
		return c
	}
	if _, err := make(target("nobody", newID())); !errors.Is(err, ErrInvalid) {
		t.Errorf("unknown target: %v", err)
	}
	early, err := make(target("early", main))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainer(t.Context(), early); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "not running but created") {
		t.Errorf("a target that is not started: %v", err)
	}
	late, err := make(target("late", main))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.StartContainer(t.Context(), main), n.StartContainer(t.Context(), late)); err != nil {
		t.Fatal(err)
	}
	if err := n.StopContainer(t.Context(), main, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := make(target("after", main)); !errors.Is(err, ErrState) {
		t.Errorf("a target that has exited: %v", err)
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for what := range n.w.held {
		if strings.HasPrefix(what, "target ") {
			t.Errorf("%s is held after the start", what)
		}
	}
}

func TestImagesThatAreMountedAreInUse(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	s, err := n.RunSandbox(t.Context(), podConfig(), "")
	if err != nil {
		t.Fatal(err)
	}
	id, err := n.CreateContainer(t.Context(), s, richConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	if used := n.ImagesInUse(); !used["sha256:data"] || !used["sha256:1"] {
		t.Errorf("%v", used)
	}
	c, err := n.ContainerByID(id)
	if err != nil {
		t.Fatal(err)
	}
	at := c.imageMounts()
	if len(at) != 3 || at[0] != at[2] || at[0] == at[1] {
		t.Errorf("%v", at)
	}
	if v := c.anonymousVolumes(); len(v) != 1 || v[0].Destination != "/data" {
		t.Errorf("%v", v)
	}
	bad := richConfig("bad")
	bad.Mounts[1].Image.Image = "absent"
	if _, err := n.CreateContainer(t.Context(), s, bad); !errors.Is(err, image.ErrNotFound) || !errors.Is(err, ErrImageVolume) || !strings.Contains(err.Error(), "mounts[1]") {
		t.Errorf("an absent image: %v", err)
	}
}
