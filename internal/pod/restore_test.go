// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plainPod is a pod that can be checkpointed: its containers have PID namespaces of their own.
func plainPod(uid string) *runtimeapi.PodSandboxConfig {
	c := podConfig()
	c.Metadata.Uid = uid
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_CONTAINER
	return c
}

func withoutLabels() *world {
	w := newWorld()
	w.noLabels = true
	return w
}

var twoNames = []string{"a", "b"}

func configOf(name string) *runtimeapi.ContainerConfig {
	if name == "b" {
		return richConfig(name)
	}
	return containerConfig(name)
}

// twoRunning makes a pod with two containers.
func twoRunning(ctx context.Context, n *node) (sandbox string, ids []string, err error) {
	sandbox, err = n.RunSandbox(ctx, plainPod("first"), "")
	for _, name := range twoNames {
		var id string
		if err == nil {
			id, err = n.CreateContainer(ctx, sandbox, configOf(name))
		}
		if err == nil {
			err = n.StartContainer(ctx, id)
		}
		ids = append(ids, id)
	}
	return sandbox, ids, err
}

func restoreRequest(folder string) RestorePodRequest {
	return RestorePodRequest{Folder: folder, Config: plainPod("second"), Containers: []*runtimeapi.ContainerConfig{configOf("b"), configOf("a")}}
}

// allGoOn tells of containers that stand still.
func (n *node) allGoOn() error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for held := range n.w.held {
		if strings.HasPrefix(held, "pause ") {
			return errors.New("a container stands still: " + held)
		}
	}
	return nil
}

// restoring are the life of a pod that is checkpointed, and of the one that is restored from it.
var restoringStages = []stage{
	{name: "a pod", known: true, do: func(ctx context.Context, n *node, p *progress) error {
		var ids []string
		var err error
		p.sandbox, ids, err = twoRunning(ctx, n)
		for _, id := range ids { // what a kubelet does with one that could not be started
			if c, cerr := n.ContainerByID(id); cerr == nil && c.Status().Reason == ReasonStartError {
				err = errors.Join(err, n.RemoveContainer(ctx, id))
			}
		}
		return err
	}},
	{name: "CheckpointPod", do: func(ctx context.Context, n *node, p *progress) error {
		var ids []string
		for _, c := range n.Containers() {
			ids = append(ids, c.ID)
		}
		err := n.CheckpointPod(ctx, CheckpointPodRequest{SandboxID: p.sandbox, Folder: p.checkpoint, Containers: ids})
		if still := n.allGoOn(); still != nil {
			return errors.Join(still, err)
		}
		entries, rerr := os.ReadDir(p.checkpoint)
		if rerr != nil || err != nil && len(entries) > 0 {
			return fmt.Errorf("in the folder is %v: %w", entries, errors.Join(err, rerr))
		}
		if s, serr := n.SandboxByID(p.sandbox); serr != nil || s.facts().Checkpoint != "" {
			return errors.Join(errors.New("the record has the checkpoint"), serr, err)
		}
		return err
	}},
	{name: "RemovePodSandbox", known: true, do: func(ctx context.Context, n *node, p *progress) error { return n.RemoveSandbox(ctx, p.sandbox) }},
	{name: "RestorePod", do: func(ctx context.Context, n *node, p *progress) error {
		r, err := n.RestorePod(ctx, restoreRequest(p.checkpoint))
		if err != nil {
			if all := n.Sandboxes(); len(all)+len(n.Containers()) > 0 && !errors.Is(err, ErrState) {
				return fmt.Errorf("after an error there is %v: %w", all, errors.Join(errors.New("no trace wanted"), err))
			}
			return err
		}
		p.sandbox, p.restored = r.SandboxID, r.Containers
		if len(n.Sandboxes()) != 1 || len(n.Containers()) != 2 {
			return fmt.Errorf("there are %d sandboxes and %d containers", len(n.Sandboxes()), len(n.Containers()))
		}
		return nil
	}},
	{name: "StartContainer", do: func(ctx context.Context, n *node, p *progress) error {
		for _, c := range n.Containers() {
			if c.State != runtimeapi.ContainerState_CONTAINER_CREATED {
				continue // an attempt that failed made it exit
			}
			if err := n.StartContainer(ctx, c.ID); err != nil {
				return err
			}
		}
		return nil
	}},
	{name: "StopPodSandbox", known: true, do: func(ctx context.Context, n *node, p *progress) error { return n.StopSandbox(ctx, p.sandbox) }},
	{name: "RemovePodSandbox", known: true, do: func(ctx context.Context, n *node, p *progress) error { return n.RemoveSandbox(ctx, p.sandbox) }},
}

// TestEveryFaultWhileAPodIsRestoredLeaksNothing is the fault matrix for checkpoints of pods.
func TestEveryFaultWhileAPodIsRestoredLeaksNothing(t *testing.T) {
	everyFault(t, withoutLabels, restoringStages)
}

// checkpointedPod is a node with a checkpoint of a pod, which is removed.
func checkpointedPod(t *testing.T) (n *node, folder string) {
	t.Helper()
	n, folder = newNode(t, withoutLabels(), t.TempDir()), t.TempDir()
	sandbox, ids, err := twoRunning(t.Context(), n)
	if err == nil {
		err = n.CheckpointPod(t.Context(), CheckpointPodRequest{SandboxID: sandbox, Folder: folder, Containers: ids})
	}
	if err == nil {
		err = n.RemoveSandbox(t.Context(), sandbox)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n, folder
}

func TestEachContainerIsRestoredFromItsOwnState(t *testing.T) {
	n, folder := newNode(t, withoutLabels(), t.TempDir()), t.TempDir()
	sandbox, ids, err := twoRunning(t.Context(), n)
	if err == nil {
		err = n.CheckpointPod(t.Context(), CheckpointPodRequest{SandboxID: sandbox, Folder: folder, Containers: slices.Clone(ids)})
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := n.RestorePod(t.Context(), restoreRequest(folder)) // beside the pod that goes on
	if err != nil {
		t.Fatal(err)
	}
	again, err := n.RestorePod(t.Context(), restoreRequest(folder))
	if err != nil || again.SandboxID != r.SandboxID || !slices.Equal(again.Containers, r.Containers) {
		t.Errorf("a repeated call: %+v, %v; want %+v", again, err, r)
	}
	n = n.restart(t) // kill -9 between the two calls loses nothing
	for i, want := range []string{ids[1], ids[0]} {
		if err := n.StartContainer(t.Context(), r.Containers[i]); err != nil {
			t.Fatal(err)
		}
		if got := n.theTask(r.SandboxID, r.Containers[i]).state; got != "state of "+want {
			t.Errorf("container %d has %q, want that of %s", i, got, want)
		}
	}
	if left, _ := os.ReadDir(n.restoresDir()); len(left) > 0 {
		t.Errorf("started, and there is %v", left)
	}
	if _, err := n.RestorePod(t.Context(), restoreRequest(folder)); !errors.Is(err, ErrExists) {
		t.Errorf("a repeated call after the start: %v", err)
	}
	if err := n.StopSandbox(t.Context(), r.SandboxID); err != nil {
		t.Fatal(err)
	}
	if _, err := n.RestorePod(t.Context(), restoreRequest(folder)); !errors.Is(err, ErrExists) {
		t.Errorf("a repeated call after the stop: %v", err)
	}
	if err := os.MkdirAll(n.restoreDir("nobody's"), 0o700); err != nil {
		t.Fatal(err)
	}
	n = n.restart(t)
	if left, err := os.ReadDir(n.restoresDir()); err != nil || len(left) > 0 {
		t.Errorf("after a restart there is %v, %v", left, err)
	}
}

func TestWhatDoesNotGoWithTheCheckpointIsRefused(t *testing.T) {
	n, folder := checkpointedPod(t)
	for name, x := range map[string]struct {
		change func(r *RestorePodRequest)
		want   error
		says   string
	}{
		"no such folder":     {func(r *RestorePodRequest) { r.Folder += "/no" }, ErrInvalid, "no checkpoint of a pod"},
		"a relative path":    {func(r *RestorePodRequest) { r.Folder = "x" }, ErrInvalid, "not absolute"},
		"an unknown handler": {func(r *RestorePodRequest) { r.Handler = "none" }, ErrInvalid, "none"},
		"no PID namespaces":  {func(r *RestorePodRequest) { r.Config = podConfig() }, ErrUnsupported, "PID namespaces"},
		"a user namespace": {func(r *RestorePodRequest) {
			mapping := []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 65536}}
			r.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: mapping, Gids: mapping}
		}, ErrUnsupported, "user namespace"},
		"the host's network": {func(r *RestorePodRequest) {
			r.Config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}, ErrState, "namespace options"},
		"one too few":  {func(r *RestorePodRequest) { r.Containers = r.Containers[:1] }, ErrInvalid, `"a" of the checkpoint has no configuration`},
		"none":         {func(r *RestorePodRequest) { r.Containers = nil }, ErrInvalid, "has no configuration"},
		"one too many": {func(r *RestorePodRequest) { r.Containers = append(r.Containers, richConfig("c")) }, ErrInvalid, `has no container "c"`},
		"one twice":    {func(r *RestorePodRequest) { r.Containers[0] = r.Containers[1] }, ErrInvalid, "named twice"},
		"a command":    {func(r *RestorePodRequest) { r.Containers[0].Command = []string{"sh"} }, ErrState, "command"},
		"args":         {func(r *RestorePodRequest) { r.Containers[0].Args = []string{"x"} }, ErrState, "args"},
		"a folder":     {func(r *RestorePodRequest) { r.Containers[0].WorkingDir = "/x" }, ErrState, "working_dir"},
		"an environment": {func(r *RestorePodRequest) {
			r.Containers[0].Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}}
		}, ErrState, "envs"},
		"a terminal": {func(r *RestorePodRequest) { r.Containers[0].Tty = true }, ErrState, "tty"},
		"a mount":    {func(r *RestorePodRequest) { r.Containers[0].Mounts = r.Containers[0].Mounts[:1] }, ErrState, "mounts"},
		"credentials": {func(r *RestorePodRequest) {
			r.Containers[0].Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NoNewPrivs: true}}
		}, ErrState, "security_context"},
		"an image": {func(r *RestorePodRequest) { r.Containers[0].Image.Image = "busybox" }, ErrState, "ran on sha256:data"},
	} {
		r := restoreRequest(folder)
		x.change(&r)
		if _, err := n.RestorePod(t.Context(), r); !errors.Is(err, x.want) || !strings.Contains(fmt.Sprint(err), x.says) {
			t.Errorf("%s: %v, want %v with %q", name, err, x.want, x.says)
		}
	}
	n.mustBeEmpty(t)

	// What is outside of the process's state is applied anew.
	r := restoreRequest(folder)
	r.Config.Hostname, r.Config.Labels = "other", map[string]string{"a": "b"}
	r.Containers[0].Labels, r.Containers[0].LogPath = map[string]string{"a": "b"}, "other.log"
	r.Containers[0].Linux = &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 7}}
	r.Containers[0].Mounts[0].HostPath = "/elsewhere"
	if _, err := n.RestorePod(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// TestOnlyTheNodesOwnCheckpointsAreRestored: what CRIU restores has the credentials that its images say.
func TestOnlyTheNodesOwnCheckpointsAreRestored(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, n *node, folder string){
		"an image of CRIU's": func(t *testing.T, _ *node, folder string) {
			rewrite(t, folder, "0/checkpoint/inventory.img", "state of")
		},
		"a longer one": func(t *testing.T, _ *node, folder string) {
			rewrite(t, folder, "1/checkpoint/inventory.img", strings.Repeat("x", 1000))
		},
		"a shorter one":    func(t *testing.T, _ *node, folder string) { rewrite(t, folder, "1/checkpoint/inventory.img", "") },
		"changes of files": func(t *testing.T, _ *node, folder string) { rewrite(t, folder, "0/rootfs-diff.tar", "Layer") },
		"shared memory":    func(t *testing.T, _ *node, folder string) { rewrite(t, folder, "shm.tar", "x") },
		"the manifest":     func(t *testing.T, _ *node, folder string) { rewrite(t, folder, "manifest.json", "{}") },
		"no seal": func(t *testing.T, _ *node, folder string) {
			if err := os.Remove(filepath.Join(folder, "manifest.hmac")); err != nil {
				t.Fatal(err)
			}
		},
		"another node's": func(t *testing.T, n *node, _ string) {
			rewrite(t, n.cfg.Root, "checkpoint.key", strings.Repeat("k", 32))
		},
		"a link out": func(t *testing.T, _ *node, folder string) {
			at := filepath.Join(folder, "0/checkpoint/inventory.img")
			if err := errors.Join(os.Remove(at), os.Symlink("/dev/zero", at)); err != nil {
				t.Fatal(err)
			}
		},
		"an image more": nil,
	} {
		t.Run(name, func(t *testing.T) {
			n, folder := checkpointedPod(t)
			if spoil == nil { // one that is not sealed is left where it is
				rewrite(t, folder, "0/checkpoint/core-1.img", "capabilities")
				r, err := n.RestorePod(t.Context(), restoreRequest(folder))
				if err != nil {
					t.Fatal(err)
				}
				for _, id := range r.Containers {
					if _, err := os.Stat(filepath.Join(n.restoreDir(id), "checkpoint/core-1.img")); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("CRIU would read it: %v", err)
					}
				}
				return
			}
			spoil(t, n, folder)
			if _, err := n.RestorePod(t.Context(), restoreRequest(folder)); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "not a checkpoint of this node") {
				t.Errorf("got %v", err)
			}
			n.mustBeEmpty(t)
		})
	}
}

func rewrite(t *testing.T, folder, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestACheckpointOfAPodThatCannotBeIsRefusedAtOnce(t *testing.T) {
	n := newNode(t, withoutLabels(), t.TempDir())
	sandbox, ids, err := twoRunning(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	shared := podConfig()
	shared.Metadata.Name = "shared"
	other, err := n.RunSandbox(t.Context(), shared, "")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := n.CreateContainer(t.Context(), other, containerConfig("c"))
	if err == nil {
		err = n.StartContainer(t.Context(), foreign)
	}
	if err != nil {
		t.Fatal(err)
	}
	created, err := n.CreateContainer(t.Context(), sandbox, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	full := t.TempDir()
	rewrite(t, full, "x", "")
	empty := t.TempDir()
	for name, x := range map[string]struct {
		r    CheckpointPodRequest
		want error
	}{
		"unknown pod":           {CheckpointPodRequest{"nobody", empty, ids}, ErrNotFound},
		"no containers":         {CheckpointPodRequest{sandbox, empty, nil}, ErrInvalid},
		"one twice":             {CheckpointPodRequest{sandbox, empty, []string{ids[0], ids[0]}}, ErrInvalid},
		"unknown container":     {CheckpointPodRequest{sandbox, empty, []string{"nobody"}}, ErrNotFound},
		"not started":           {CheckpointPodRequest{sandbox, empty, []string{ids[0], created}}, ErrState},
		"another pod's":         {CheckpointPodRequest{sandbox, empty, []string{ids[0], foreign}}, ErrInvalid},
		"one PID namespace":     {CheckpointPodRequest{other, empty, []string{foreign}}, ErrUnsupported},
		"no folder":             {CheckpointPodRequest{sandbox, empty + "/no", ids}, ErrInvalid},
		"a relative folder":     {CheckpointPodRequest{sandbox, "x", ids}, ErrInvalid},
		"a folder with a file":  {CheckpointPodRequest{sandbox, full, ids}, ErrInvalid},
		"a file for the folder": {CheckpointPodRequest{sandbox, full + "/x", ids}, ErrInvalid},
	} {
		if err := n.CheckpointPod(t.Context(), x.r); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
	if err := n.allGoOn(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("there is %v, %v", left, err)
	}
}

// TestAPodIsOfOneInstant: none goes on before all are written, and all do when the time is over.
func TestAPodIsOfOneInstant(t *testing.T) {
	n, folder := newNode(t, withoutLabels(), t.TempDir()), t.TempDir()
	sandbox, ids, err := twoRunning(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g := n.w.waitIn("checkpoint task")
	result := make(chan error, 1)
	go func() {
		result <- n.CheckpointPod(ctx, CheckpointPodRequest{SandboxID: sandbox, Folder: folder, Containers: ids})
	}()
	<-g.reached
	n.w.mu.Lock()
	still := n.w.held["pause "+ids[0]] && n.w.held["pause "+ids[1]]
	n.w.mu.Unlock()
	if !still {
		t.Error("one is written down while another goes on")
	}
	cancel()
	select {
	case err := <-result:
		t.Errorf("an answer while containers stand still: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(g.open)
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := n.allGoOn(); err != nil {
		t.Error(err)
	}
}

// TestAPodIsRemovedWhileItIsWrittenDown: the removal does not wait, and the checkpoint fails and leaves nothing.
func TestAPodIsRemovedWhileItIsWrittenDown(t *testing.T) {
	n, folder := newNode(t, withoutLabels(), t.TempDir()), t.TempDir()
	sandbox, ids, err := twoRunning(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	g := n.w.waitIn("diff rootfs")
	result := make(chan error, 1)
	go func() {
		result <- n.CheckpointPod(t.Context(), CheckpointPodRequest{SandboxID: sandbox, Folder: folder, Containers: ids})
	}()
	<-g.reached
	if err := errors.Join(n.StopSandbox(t.Context(), sandbox), n.RemoveSandbox(t.Context(), sandbox)); err != nil {
		t.Fatal(err)
	}
	close(g.open)
	if err := <-result; err == nil {
		t.Error("a checkpoint of what is gone")
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := n.allGoOn(); err != nil {
		t.Error(err)
	}
	n.mustBeEmpty(t)
}

func TestAPodThatCannotBeRestoredInTimeIsNotThere(t *testing.T) {
	n, folder := checkpointedPod(t)
	ctx, cancel := context.WithCancel(t.Context())
	g := n.w.waitIn("apply to rootfs")
	result := make(chan error, 1)
	go func() {
		_, err := n.RestorePod(ctx, restoreRequest(folder))
		result <- err
	}()
	<-g.reached
	if len(n.Sandboxes())+len(n.Containers()) > 0 {
		t.Error("a pod is seen before it is there")
	}
	cancel()
	close(g.open)
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	n.mustBeEmpty(t)
	if proto.Equal(plainPod("first"), plainPod("second")) {
		t.Error("the test restores the pod itself")
	}
}
