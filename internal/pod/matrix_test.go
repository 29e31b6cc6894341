// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func podConfig() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}}}}
}

func containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "busybox"}}
}

// richConfig also mounts two images, one of them twice, and its own has a volume.
func richConfig(name string) *runtimeapi.ContainerConfig {
	c := containerConfig(name)
	c.Image.Image = "data"
	for _, im := range []string{"data", "busybox", "data"} {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: im}, Readonly: true})
	}
	return c
}

// joinProcesses makes, starts and removes a container that joins another's processes.
func joinProcesses(ctx context.Context, n *node, p *progress) error {
	config := containerConfig("debug")
	config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: p.container}}}
	id, err := n.CreateContainer(ctx, p.sandbox, config)
	if err != nil {
		return err
	}
	return errors.Join(n.StartContainer(ctx, id), n.StopContainer(ctx, id, time.Second), n.RemoveContainer(ctx, id))
}

// checkpointed makes a checkpoint. Whatever becomes of it, the container goes on.
func checkpointed(ctx context.Context, n *node, p *progress) error {
	archives := filepath.Join(n.cfg.Root, "archives")
	if err := os.MkdirAll(archives, 0o700); err != nil {
		return err
	}
	location := filepath.Join(archives, "c.tar")
	err := n.Checkpoint(ctx, CheckpointRequest{ID: p.container, Location: location, Status: []byte("{}")})
	n.w.mu.Lock()
	paused := n.w.held["pause "+p.container]
	n.w.mu.Unlock()
	if paused {
		return errors.Join(errors.New("the container stands still"), err)
	}
	entries, rerr := os.ReadDir(archives)
	if rerr != nil || err == nil && len(entries) != 1 || err != nil && len(entries) > 1 {
		return fmt.Errorf("archives %v: %w", entries, errors.Join(err, rerr))
	}
	if c, cerr := n.ContainerByID(p.container); cerr == nil && c.facts().Checkpoint != "" {
		return fmt.Errorf("the record has %s: %w", c.facts().Checkpoint, err)
	}
	left, _ := os.ReadDir(n.checkpointsDir())
	if len(left) > 0 {
		return fmt.Errorf("left in the folder of checkpoints: %v: %w", left, err)
	}
	return err
}

// stage is a part of a pod's life that can be repeated after a failure.
type stage struct {
	name string
	do   func(ctx context.Context, n *node, p *progress) error
	// known: another matrix has its faults.
	known bool
}

// stages are a pod's whole life.
var stages = []stage{
	{name: "RunPodSandbox", do: func(ctx context.Context, n *node, p *progress) (err error) {
		p.sandbox, err = n.RunSandbox(ctx, podConfig(), "")
		return err
	}},
	{name: "CreateContainer", do: func(ctx context.Context, n *node, p *progress) (err error) {
		p.container, err = n.CreateContainer(ctx, p.sandbox, richConfig("c"))
		return err
	}},
	{name: "StartContainer", do: func(ctx context.Context, n *node, p *progress) error {
		err := n.StartContainer(ctx, p.container)
		if c, cerr := n.ContainerByID(p.container); cerr == nil && c.Status().Reason == ReasonStartError {
			// What a kubelet does then: remove it, make the next one.
			if err := n.RemoveContainer(ctx, p.container); err != nil {
				return err
			}
			if p.container, err = n.CreateContainer(ctx, p.sandbox, richConfig("c")); err != nil {
				return err
			}
			return n.StartContainer(ctx, p.container)
		}
		return err
	}},
	{name: "a container that joins", do: joinProcesses},
	{name: "CheckpointContainer", do: checkpointed},
	{name: "StopContainer", do: func(ctx context.Context, n *node, p *progress) error {
		return n.StopContainer(ctx, p.container, time.Second)
	}},
	{name: "RemoveContainer", do: func(ctx context.Context, n *node, p *progress) error { return n.RemoveContainer(ctx, p.container) }},
	{name: "StopPodSandbox", do: func(ctx context.Context, n *node, p *progress) error { return n.StopSandbox(ctx, p.sandbox) }},
	{name: "RemovePodSandbox", do: func(ctx context.Context, n *node, p *progress) error { return n.RemoveSandbox(ctx, p.sandbox) }},
}

type progress struct {
	sandbox, container string
	// checkpoint is a folder that no crash takes; restored are the containers that came from it.
	checkpoint string
	restored   []string
}

// live takes a pod through its stages; a stage that fails by the injected fault is retried, a crash is followed by a restart.
func live(t *testing.T, n *node, stages []stage) *node {
	t.Helper()
	p := progress{checkpoint: t.TempDir()}
	for _, stage := range stages {
		for attempt := 0; ; attempt++ {
			if attempt == 4 {
				t.Fatalf("%s does not succeed when retried", stage.name)
			}
			result := make(chan error, 1)
			q := p
			n.w.mark(stage.known)
			go func(n *node) { result <- stage.do(t.Context(), n, &q) }(n)
			select {
			case err := <-result:
				p = q
				if err == nil {
					break
				}
				if !errors.Is(err, errFault) && !errors.Is(err, ErrState) {
					t.Fatalf("%s: %v", stage.name, err)
				}
				continue
			case <-n.w.crash:
				n = n.restart(t)
				p = lookUp(n, p)
				continue
			case <-time.After(20 * time.Second):
				t.Fatalf("%s hangs", stage.name)
			}
			break
		}
	}
	select { // the fault may strike in a clean-up that nobody waits for
	case <-n.w.crash:
		n = n.restart(t)
	default:
	}
	return n
}

// lookUp finds the pod as a kubelet would after the daemon's restart: in the lists.
func lookUp(n *node, p progress) progress {
	for _, s := range n.Sandboxes() {
		p.sandbox = s.ID
	}
	for _, c := range n.Containers() {
		if c.Config.GetMetadata().GetName() != "debug" {
			p.container = c.ID
		}
	}
	return p
}

// The fault matrix: every call that a pod's whole life makes into the node × every kind of fault.
// Whatever strikes, retries lead to the end and nothing is left.
func TestEveryFaultInAPodsLifeLeaksNothing(t *testing.T) { everyFault(t, newWorld, stages) }

// everyFault has stages run once without and then with each fault.
func everyFault(t *testing.T, world func() *world, stages []stage) {
	t.Helper()
	clean := live(t, newNode(t, world(), t.TempDir()), stages)
	settleAll(t, clean)
	clean.mustBeEmpty(t)
	calls := clean.w.calls
	if calls < 20 {
		t.Fatalf("only %d calls in a pod's life: the matrix misses something", calls)
	}
	known := clean.w.known
	for _, kind := range []string{"error before", "error after", "crash before", "crash after"} {
		for at := 1; at <= calls; at++ {
			if known[at-1] {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d %s", kind, at, clean.w.trace[at-1]), func(t *testing.T) {
				t.Parallel()
				w := world()
				w.fault = fault{at: at, kind: kind}
				n := live(t, newNode(t, w, t.TempDir()), stages)
				settleAll(t, n)
				n.mustBeEmpty(t)
			})
		}
	}
}

// settleAll waits for clean-ups in the background; what a fault made fail there is finished by the next start.
func settleAll(t *testing.T, n *node) {
	t.Helper()
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
