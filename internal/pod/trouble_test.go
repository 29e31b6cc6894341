// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// onSmallDisk makes a node whose records are on a small disk; the result fills that, to the last byte.
func onSmallDisk(t *testing.T) (n *node, fill func()) {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal("these tests need root: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(root, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return newNode(t, newWorld(), dir), func() {
		f, err := os.Create(filepath.Join(root, "filler"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for {
			if _, err := f.Write(make([]byte, 4096)); errors.Is(err, syscall.ENOSPC) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// onePage is enough that each write of a record wants room that a full disk has not got.
var onePage = map[string]string{"large": strings.Repeat("x", 5000)}

func (n *node) runOne(t *testing.T) (sandbox, container string) {
	t.Helper()
	pod, c := podConfig(), containerConfig("c")
	pod.Annotations, c.Annotations = onePage, onePage
	sandbox, err := n.RunSandbox(t.Context(), pod, "")
	if err != nil {
		t.Fatal(err)
	}
	container, err = n.CreateContainer(t.Context(), sandbox, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainer(t.Context(), container); err != nil {
		t.Fatal(err)
	}
	return sandbox, container
}

// A kubelet that evicts pods because the disk is full asks for just this.
func TestAFullDiskKeepsNothingFromBeingStoppedAndRemoved(t *testing.T) {
	n, fill := onSmallDisk(t)
	s, c := n.runOne(t)
	fill()
	other := podConfig()
	other.Metadata.Name, other.Annotations = "other", onePage
	if id, err := n.RunSandbox(t.Context(), other, ""); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("run: %q, %v; the test's disk is not full", id, err)
	}
	if err := n.StopContainer(t.Context(), c, time.Minute); err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	if st := mustStatus(t, n, c); st.ExitCode != 128+15 {
		t.Errorf("status: %+v", st)
	}
	if err := n.StopSandbox(t.Context(), s); err != nil {
		t.Errorf("StopPodSandbox: %v", err)
	}
	if err := n.RemoveContainer(t.Context(), c); err != nil {
		t.Errorf("RemoveContainer: %v", err)
	}
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Errorf("RemovePodSandbox: %v", err)
	}
	n.mustBeEmpty(t)
}

// What a life could not write down, the next one finds out and finishes.
func TestWhatAFullDiskDidNotTakeIsFoundOutByTheNextLife(t *testing.T) {
	n, fill := onSmallDisk(t)
	s, c := n.runOne(t)
	fill()
	if err := n.StopSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.dir, "root", "filler")); err != nil { // the copy shall not have it
		t.Fatal(err)
	}
	n = n.restart(t)
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("container: %+v", st)
	}
	for _, st := range n.Sandboxes() {
		if st.Ready {
			t.Error("the pod, which has no network any more, is ready")
		}
	}
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}

func TestAStopThatWasGivenUpTakesNoPatienceFromTheNext(t *testing.T) {
	for _, name := range []string{"StopContainer", "RemoveContainer"} {
		t.Run(name, func(t *testing.T) {
			n, _, c := running(t)
			update := n.w.waitIn("read limits")
			updated := make(chan error, 1)
			go func() {
				updated <- n.UpdateResources(t.Context(), c, &runtimeapi.LinuxContainerResources{CpuShares: 2})
			}()
			<-update.reached
			ctx, giveUp := context.WithCancel(t.Context())
			giveUp()
			var err error
			if name == "StopContainer" {
				err = n.StopContainer(ctx, c, 0)
			} else {
				err = n.RemoveContainer(ctx, c)
			}
			if !errors.Is(err, ErrInFlight) {
				t.Fatalf("%s beside an update: %v, want ErrInFlight", name, err)
			}
			close(update.open)
			if err := <-updated; err != nil {
				t.Fatal(err)
			}
			if err := n.StopContainer(t.Context(), c, time.Hour); err != nil {
				t.Fatal(err)
			}
			if st := mustStatus(t, n, c); st.ExitCode != 128+15 {
				t.Errorf("exit code %d: it was not given the chance to end itself", st.ExitCode)
			}
		})
	}
}

// crashInStart ends this life while a container is started.
func (n *node) crashInStart(t *testing.T, container string) {
	t.Helper()
	n.w.mu.Lock()
	n.w.fault = fault{what: "start task", kind: "crash before"}
	n.w.mu.Unlock()
	go func() { _ = n.StartContainer(t.Context(), container) }()
	<-n.w.crash
}

func TestAStartAfterOneThatCouldNotBeReleasedStarts(t *testing.T) {
	n, s, c := running(t)
	config := containerConfig("debug")
	config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: c}}}
	debug, err := n.CreateContainer(t.Context(), s, config)
	if err != nil {
		t.Fatal(err)
	}
	n.crashInStart(t, debug)
	n.w.failNext("release target")
	n = n.restart(t)
	if st := mustStatus(t, n, debug); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Fatalf("after the restart it is %v", st.State)
	}
	if err := n.StartContainer(t.Context(), debug); err != nil {
		t.Fatal(err)
	}
	if st := mustStatus(t, n, debug); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.PID == 0 {
		t.Errorf("StartContainer succeeded and it is %v, PID %d", st.State, st.PID)
	}
}

func TestACreationAfterOneThatCouldNotBeRolledBackCreates(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	pod := podConfig()
	pod.LogDirectory = filepath.Join(t.TempDir(), "logs")
	s, err := n.RunSandbox(t.Context(), pod, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(pod.LogDirectory); err != nil {
		t.Fatal(err)
	}
	config := containerConfig("c")
	config.LogPath = "c.log"
	n.w.failNext("release rootfs")
	if _, err := n.CreateContainer(t.Context(), s, config); !errors.Is(err, ErrInvalid) || !errors.Is(err, errFault) {
		t.Fatalf("got %v, want the folder of logs missing and the fault", err)
	}
	if err := os.Mkdir(pod.LogDirectory, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := n.CreateContainer(t.Context(), s, config)
	if err != nil {
		t.Fatal(err)
	}
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("CreateContainer succeeded and it is %v", st.State)
	}
	if err := n.StartContainer(t.Context(), c); err != nil {
		t.Error(err)
	}
}

func TestARequestWaitsUntilALateRecoveryIsApplied(t *testing.T) {
	n, s, c := created(t)
	n.crashInStart(t, c)
	answer := n.silence(s)
	n = n.restart(t)
	release := n.w.waitIn("kill task")
	started := make(chan error, 1)
	go func() { started <- n.StartContainer(t.Context(), c) }()
	answer()
	select {
	case <-release.reached: // recovery takes the attempt of the life before away
	case err := <-started:
		t.Fatalf("StartContainer has answered %v before that", err)
	}
	select {
	case err := <-started:
		t.Fatalf("StartContainer has answered %v in the middle of it", err)
	case <-time.After(50 * time.Millisecond): // where it does not wait, it is done at once
	}
	close(release.open)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if st := mustStatus(t, n, c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("StartContainer succeeded and it is %v", st.State)
	}
}
