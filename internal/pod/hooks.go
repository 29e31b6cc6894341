// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/nri"
)

// Hooks are told what happens to pods, and may change or refuse it. Implementation: nri.NRI. None of them may be called with a lock held;
// each ends within the timeouts of the plugins that it calls.
type Hooks interface {
	// Active tells whether anybody listens.
	Active() bool
	// Hold keeps new listeners out until it is released; between a hook and the moment from which its object is listed.
	Hold() (release func())
	// Ask tells of an event that may be refused, Tell of one that may not. The container is nil for events of sandboxes.
	Ask(ctx context.Context, e nri.Event, p nri.Pod, c *nri.Container) error
	Tell(ctx context.Context, e nri.Event, p nri.Pod, c *nri.Container)
	// CreateContainer may change the spec. Undo follows when the container does not come to be all the same.
	CreateContainer(ctx context.Context, p nri.Pod, c nri.Container) (nri.Created, error)
	Undo(ctx context.Context, p nri.Pod, c nri.Container)
	UpdateContainer(ctx context.Context, p nri.Pod, c nri.Container, r *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, []nri.Update, error)
	// UpdateSandbox may refuse new resources of the pod as a whole.
	UpdateSandbox(ctx context.Context, p nri.Pod, overhead, resources *runtimeapi.LinuxContainerResources) error
	StopContainer(ctx context.Context, p nri.Pod, c nri.Container) []nri.Update
}

const (
	// hookPatience bounds how long one container's operation waits for another's, which a plugin wants to change: two that wait for each
	// other would wait for ever.
	hookPatience = 2 * time.Second
	// evictGrace is what a container that a plugin evicts has to end by itself.
	evictGrace = 10 * time.Second
	// askingPlugins is what an operation does that waits for them.
	askingPlugins = "NRI plugins"
)

// hooks are m's, or nil where nobody listens.
func (m *Manager) hooks() Hooks {
	if m.parts.Hooks == nil || !m.parts.Hooks.Active() {
		return nil
	}
	return m.parts.Hooks
}

// hold must come before hooks: who listens changes only while nobody holds.
func (m *Manager) hold() (release func()) {
	if m.parts.Hooks == nil {
		return func() {}
	}
	return m.parts.Hooks.Hold()
}

func (s *Sandbox) forHooks() nri.Pod {
	md, r := s.Config.GetMetadata(), s.facts()
	p := nri.Pod{ID: s.ID, Name: md.GetName(), Namespace: md.GetNamespace(), UID: md.GetUid(), Labels: s.Config.GetLabels(),
		Annotations: s.Config.GetAnnotations(), Handler: s.Handler, CgroupParent: r.CgroupParent, Overhead: s.Config.GetLinux().GetOverhead(),
		Resources: s.Config.GetLinux().GetResources(), IPs: r.IPs, Namespaces: map[string]string{}}
	if p.IPs == nil {
		p.IPs = s.addresses() // not in the record yet
	}
	for kind, path := range map[string]string{"network": s.paths.pins.Net, "ipc": s.paths.pins.IPC, "uts": s.paths.pins.UTS, "pid": s.paths.pid} {
		if path != "" {
			p.Namespaces[kind] = path
		}
	}
	return p
}

// forHooks reads the spec from the bundle, which may be gone.
func (c *Container) forHooks() nri.Container {
	st := c.Status()
	h := nri.Container{ID: c.ID, Pod: c.sandbox.ID, Name: c.Config.GetMetadata().GetName(), State: st.State, Labels: c.Config.GetLabels(),
		Annotations: c.Config.GetAnnotations(), Seccomp: c.Config.GetLinux().GetSecurityContext().GetSeccomp(), PID: st.PID,
		CreatedAt: st.CreatedAt, StartedAt: st.StartedAt, FinishedAt: st.FinishedAt, ExitCode: st.ExitCode, Reason: st.Reason, Message: st.Message,
		ImageName: c.Config.GetImage().GetUserSpecifiedImage(), ImageDigest: st.ImageRef, ImageID: st.ImageID}
	if h.ImageName == "" {
		h.ImageName = c.Config.GetImage().GetImage()
	}
	spec, err := os.ReadFile(c.paths.spec)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Warn("read spec for hooks", "error", err)
	}
	h.Spec = spec
	return h
}

func (s *Sandbox) tell(ctx context.Context, e nri.Event) {
	if h := s.m.hooks(); h != nil {
		s.ops.doing(askingPlugins)
		defer s.ops.doing("")
		h.Tell(ctx, e, s.forHooks(), nil)
	}
}

func (c *Container) tell(ctx context.Context, e nri.Event) {
	if h := c.m.hooks(); h != nil {
		c.ops.doing(askingPlugins)
		defer c.ops.doing("")
		hc := c.forHooks()
		h.Tell(ctx, e, c.sandbox.forHooks(), &hc)
	}
}

// toldStopped tells that the container has ended, and gives others what plugins want to give them.
func (c *Container) toldStopped(ctx context.Context) {
	h := c.m.hooks()
	if h == nil {
		return
	}
	c.ops.doing(askingPlugins)
	defer c.ops.doing("")
	if updates := h.StopContainer(ctx, c.sandbox.forHooks(), c.forHooks()); len(updates) > 0 {
		if _, err := c.m.HookUpdate(ctx, updates); err != nil {
			c.log.WarnContext(ctx, "updates of others at the end of a container", "error", err)
		}
	}
}

// askCreate lets plugins change the spec of a container that is being created, and makes room for it where they want that.
func (c *Container) askCreate(ctx context.Context, spec []byte) (nri.Created, error) {
	h := c.m.parts.Hooks
	if h == nil {
		return nri.Created{Spec: spec}, nil
	}
	p := c.sandbox.forHooks()
	if !h.Active() && !nri.Demanded(p, c.Config.GetMetadata().GetName()) {
		return nri.Created{Spec: spec}, nil
	}
	c.ops.doing(askingPlugins)
	defer c.ops.doing("")
	hc := c.forHooks()
	hc.Spec = spec
	made, err := h.CreateContainer(ctx, p, hc)
	if err != nil {
		return made, err
	}
	if _, err := c.m.HookUpdate(ctx, made.Updates); err != nil {
		h.Undo(ctx, p, hc)
		return made, err
	}
	return made, nil
}

// undoCreate tells that the container has not come to be though plugins had agreed.
func (c *Container) undoCreate(ctx context.Context) {
	if h := c.m.hooks(); h != nil {
		h.Undo(ctx, c.sandbox.forHooks(), c.forHooks())
	}
}

// HookState implements nri.Node. Pods that were stopped are left out with their containers, and so is what is being removed: plugins cannot
// tell them from others.
func (m *Manager) HookState() ([]nri.Pod, []nri.Container) {
	m.mu.RLock()
	var sandboxes []*Sandbox
	for _, s := range m.sandboxes {
		sandboxes = append(sandboxes, s)
	}
	var containers []*Container
	for _, c := range m.containers {
		containers = append(containers, c)
	}
	m.mu.RUnlock()
	var pods []nri.Pod
	for _, s := range sandboxes {
		if s.Status().Ready {
			pods = append(pods, s.forHooks())
		}
	}
	var all []nri.Container
	for _, c := range containers {
		// A creation that failed and could not be rolled back is shown to people; plugins were told that it came to nothing.
		if r := c.facts(); c.sandbox.Status().Ready && r.CreatedAt != 0 && r.RemovedAt == 0 {
			all = append(all, c.forHooks())
		}
	}
	return pods, all
}

// HookUpdate implements nri.Node: it changes resources without asking plugins again.
func (m *Manager) HookUpdate(ctx context.Context, updates []nri.Update) (failed []nri.Update, err error) {
	var errs []error
	for _, u := range updates {
		if err := m.hookUpdate(ctx, u); err != nil {
			failed = append(failed, u)
			if !u.IgnoreFailure {
				errs = append(errs, fmt.Errorf("update asked for by a plugin: %w", err))
			}
		}
	}
	return failed, errors.Join(errs...)
}

func (m *Manager) hookUpdate(ctx context.Context, u nri.Update) error {
	c, err := m.ContainerByID(u.Container)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, hookPatience)
	defer cancel()
	return c.ops.do(ctx, "update by a plugin "+newID()[:8], func(ctx context.Context) error { return c.changeResources(ctx, u.Resources) })
}

// HookEvict implements nri.Node.
func (m *Manager) HookEvict(ctx context.Context, id, reason string) error {
	c, err := m.ContainerByID(id)
	if err != nil {
		return err
	}
	c.log.WarnContext(ctx, "container is evicted by a plugin", "reason", reason)
	if err := m.StopContainer(ctx, c.ID, evictGrace); err != nil {
		return err
	}
	c.learn(func(r *containerRecord) { r.Message = "evicted by an NRI plugin: " + reason })
	return nil
}
