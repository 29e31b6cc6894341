// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/network"
	"github.com/berth-run/berth/internal/nri"
	"github.com/berth-run/berth/internal/runtime"
)

// RunSandbox makes a sandbox and returns its ID once it is ready. A repeated call joins the one in flight, and returns the
// same ID when that is done already. Errors: ErrInvalid, ErrExists (same name, another config), ErrUnavailable, ErrInFlight.
func (m *Manager) RunSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if handler == "" {
		handler = m.cfg.DefaultHandler
	}
	if err := m.CheckHandler(handler); err != nil {
		return "", err
	}
	if err := m.parts.Specs.ValidateSandbox(config, handler); err != nil {
		return "", err
	}
	for {
		s, err := m.reserveSandbox(config, handler)
		if err != nil {
			return "", err
		}
		if err = s.ops.do(ctx, "RunPodSandbox", s.run); errors.Is(err, errGone) {
			continue // it failed or was removed since: begin anew
		}
		if err == nil && (!proto.Equal(s.Config, config) || s.Handler != handler) {
			return "", fmt.Errorf("%s: a sandbox of this name and attempt exists with another configuration; remove it first: %w", s, ErrExists)
		}
		return s.ID, err
	}
}

// reserveSandbox finds the sandbox of that name, or makes the one that will have it.
func (m *Manager) reserveSandbox(config *runtimeapi.PodSandboxConfig, handler string) (*Sandbox, error) {
	name := sandboxName(config)
	raw, err := encodeConfig(config)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if id, ok := m.names[name]; ok {
		return m.sandboxes[id], nil
	}
	id := newID()
	s := m.newSandbox(sandboxRecord{ID: id, Handler: handler, Config: raw, CreatedAt: now(), CgroupParent: m.cgroupParent(config, id),
		SandboxContainer: m.parts.Runtime.SandboxContainer(handler)}, config)
	m.sandboxes[id], m.names[name] = s, id
	return s, nil
}

// run takes the sandbox from its name to READY.
func (s *Sandbox) run(ctx context.Context) error { return s.runWith(ctx, nil) }

// runWith is run for a sandbox that has containers from the beginning: fill, if set, makes them. Nobody sees the sandbox or them before, and where it fails
// there is none of them.
func (s *Sandbox) runWith(ctx context.Context, fill func(context.Context) error) error {
	r := s.facts()
	switch {
	case s.isRemoved():
		return errGone
	case r.RemovedAt != 0:
		return cmp.Or(s.remove(ctx), errGone)
	case r.StoppedAt != 0:
		return fmt.Errorf("%s: a sandbox of this name and attempt exists and is stopped; remove it first: %w", s, ErrExists)
	case r.ReadyAt != 0:
		return nil
	case len(r.Begun) > 0: // cut off in an earlier life: first away with it
		return errors.Join(s.rollBack(ctx), errGone)
	}
	if s.paths.pins.Net != "" {
		if err := s.networkReady(ctx); err != nil {
			s.forget()
			return fmt.Errorf("%s: %w: %w", s, ErrUnavailable, err)
		}
	}
	// The record comes before the first side effect: from here on a crash finds what to release.
	if err := s.record(ctx); err != nil {
		return errors.Join(err, s.removeCgroup(ctx), s.erase())
	}
	if err := s.plan.Up(ctx); err != nil {
		return errors.Join(err, s.abandon())
	}
	if err := s.appear(ctx, fill); err != nil {
		// What goes wrong may be the end of ctx: the way back must not end with it.
		return errors.Join(fmt.Errorf("%s: %w", s, err), s.unmake(context.WithoutCancel(ctx)))
	}
	for _, c := range s.containers() { // which nobody has seen before their sandbox
		c.again()
	}
	s.log.InfoContext(ctx, "sandbox is ready", "ips", s.Status().IPs)
	return nil
}

// unmake takes back what runWith has made.
func (s *Sandbox) unmake(ctx context.Context) error {
	if err := s.eachContainer(func(c *Container) error { return c.forceRemove(ctx) }); err != nil {
		return errors.Join(err, s.abandon())
	}
	return errors.Join(s.plan.Down(ctx), s.abandon())
}

// appear makes the sandbox READY, which plugins may refuse: nobody sees it before they have answered.
func (s *Sandbox) appear(ctx context.Context, fill func(context.Context) error) error {
	release := s.m.hold()
	defer func() { release() }()
	err := s.askRun(ctx)
	if err != nil {
		return err
	}
	if fill != nil {
		// It takes its time, and holds by itself. A plugin that comes meanwhile hears of the sandbox with its first container.
		release()
		err = fill(ctx)
		release = s.m.hold()
	}
	if ips := s.addresses(); err == nil {
		err = s.update(func(r *sandboxRecord) { r.ReadyAt, r.IPs = now(), ips })
	}
	if err != nil {
		s.tell(context.WithoutCancel(ctx), nri.StopSandbox)
		s.tell(context.WithoutCancel(ctx), nri.RemoveSandbox)
	}
	return err
}

func (s *Sandbox) askRun(ctx context.Context) error {
	h := s.m.hooks()
	if h == nil {
		return nil
	}
	s.ops.doing(askingPlugins)
	defer s.ops.doing("")
	return h.Ask(ctx, nri.RunSandbox, s.forHooks(), nil)
}

// statusPatience bounds the wait for network plugins that have just been asked for their status: after a start of the daemon a
// pod shall not fail because it came first.
const statusPatience = 5 * time.Second

func (s *Sandbox) networkReady(ctx context.Context) error {
	for end := time.Now().Add(statusPatience); ; {
		err := s.m.parts.Network.Ready()
		if !errors.Is(err, network.ErrUnanswered) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Sandbox) record(ctx context.Context) error {
	if err := os.MkdirAll(s.paths.containerRecord, 0o700); err != nil {
		return fmt.Errorf("%s: make folder of records: %w", s, err)
	}
	labels, err := s.chooseLabels()
	if err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	own, err := s.joinCgroup(ctx)
	if err == nil {
		// Another sandbox may have left the cgroup since, and have bequeathed it to this one.
		err = s.update(func(r *sandboxRecord) { r.OwnCgroup, r.SELinux = r.OwnCgroup || own, labels })
	}
	if err != nil {
		s.m.releaseLabels(labels)
	}
	return err
}

// abandon ends a creation that failed: without a trace where the roll-back released everything, else as a
// stopped sandbox, which the kubelet then removes.
func (s *Sandbox) abandon() error {
	if len(s.facts().Begun) == 0 {
		return s.erase()
	}
	s.learn(func(r *sandboxRecord) { r.StoppedAt, r.Why = now(), "creation failed and could not be rolled back" })
	return nil
}

func (s *Sandbox) addresses() (ips []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result.IPs
}

// erase removes record and object; the sandbox holds nothing any more.
func (s *Sandbox) erase() error {
	if err := s.strike(func() error { return mount.RemoveAll(s.paths.dir) }); err != nil {
		return err
	}
	s.forget()
	return nil
}

func (s *Sandbox) forget() {
	s.vanish()
	s.m.events.forget(s.feed)
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.m.sandboxes[s.ID] == s { // the first time
		s.m.releaseLabels(s.facts().SELinux)
	}
	delete(s.m.sandboxes, s.ID)
	delete(s.m.names, sandboxName(s.Config))
}

// StopSandbox ends all containers of a sandbox by force and gives back its network, namespaces and processes.
// It is idempotent; a sandbox that does not exist is stopped (the kubelet's garbage collector relies on it).
func (m *Manager) StopSandbox(ctx context.Context, id string) error {
	s, err := m.SandboxByID(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return s.ops.do(ctx, "StopPodSandbox", s.stop)
}

func (s *Sandbox) stop(ctx context.Context) error {
	if s.isRemoved() || s.facts().StoppedAt != 0 && !s.holdsMoreThanState() {
		return nil
	}
	if s.facts().StoppedAt == 0 {
		// Not ready from the first moment on: nobody shall start containers in it, also after a crash.
		s.learn(func(r *sandboxRecord) { r.StoppedAt = now() })
	}
	s.ending.begin()
	if err := s.eachContainer(func(c *Container) error { return c.halt(ctx) }); err != nil {
		return err
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.toldStopped(ctx)
	s.m.ended(s.ID)
	if err := s.plan.DownTo(ctx, s.allBut(stepState)...); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "sandbox is stopped")
	return nil
}

// settle frees what the containers, none of which runs any more, held to run. The network goes at the same time, as its plugins mostly wait for the
// kernel; but not before hooks that may want it have been told of the end of everything.
func (s *Sandbox) settle(ctx context.Context) error {
	settle := func() error {
		return s.eachContainer(func(c *Container) error { return c.ops.do(ctx, "settle", c.settle) })
	}
	if s.m.hooks() != nil {
		return settle()
	}
	var g errgroup.Group
	var detached error
	g.Go(func() error { detached = s.plan.DownTo(ctx, stepNetwork); return nil })
	err := settle()
	if err == nil { // the rest that stands on no network
		err = s.plan.DownTo(ctx, s.allBut(stepState, stepNetwork, stepNamespaces)...)
	}
	_ = g.Wait() // its error is detached
	return errors.Join(err, detached)
}

// toldStopped tells of the end of a sandbox that was ready, once its containers have ended and while it still has what it was made of:
// when that is released, it has been told.
func (s *Sandbox) toldStopped(ctx context.Context) {
	if s.facts().ReadyAt != 0 && s.holdsMoreThanState() {
		s.tell(ctx, nri.StopSandbox)
	}
}

func (s *Sandbox) holdsMoreThanState() bool {
	for _, name := range s.facts().Begun {
		if name != stepState {
			return true
		}
	}
	return false
}

func (s *Sandbox) allBut(some ...string) []string {
	var names []string
	for _, st := range s.plan.Steps {
		if !slices.Contains(some, st.Name) {
			names = append(names, st.Name)
		}
	}
	return names
}

// eachContainer runs f on all containers, a bounded number at a time, and joins the errors.
func (s *Sandbox) eachContainer(f func(*Container) error) error {
	return each(s.containers(), 32, func(_ int, c *Container) error { return f(c) })
}

// each runs f on the n-th of some containers, at most limit at a time, and joins the errors.
func each(cs []*Container, limit int, f func(n int, c *Container) error) error {
	var g errgroup.Group
	g.SetLimit(limit)
	errs := make([]error, len(cs))
	for n, c := range cs {
		g.Go(func() error { errs[n] = f(n, c); return nil })
	}
	_ = g.Wait() // all errors are in errs, not just the first
	return errors.Join(errs...)
}

// RemoveSandbox stops a sandbox and removes it with its containers. It is idempotent; unknown is success.
func (m *Manager) RemoveSandbox(ctx context.Context, id string) error {
	s, err := m.SandboxByID(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return s.ops.do(ctx, "RemovePodSandbox", s.remove)
}

func (s *Sandbox) remove(ctx context.Context) error {
	if s.isRemoved() {
		return nil
	}
	s.learn(func(r *sandboxRecord) {
		r.RemovedAt = now()
		if r.StoppedAt == 0 {
			r.StoppedAt = r.RemovedAt
		}
	})
	s.ending.begin()
	if err := s.eachContainer(func(c *Container) error { return c.forceRemove(ctx) }); err != nil {
		return err
	}
	s.toldStopped(ctx)
	s.m.ended(s.ID)
	if err := s.plan.Down(ctx); err != nil {
		return err
	}
	if err := s.disappear(ctx); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "sandbox is removed")
	return nil
}

func (s *Sandbox) disappear(ctx context.Context) error {
	defer s.m.hold()()
	if s.facts().ReadyAt != 0 {
		s.tell(ctx, nri.RemoveSandbox)
	}
	return s.erase()
}

// watchPause ends the sandbox when its PID 1 dies: the kernel has killed every container with it.
func (s *Sandbox) watchPause(shim Shim) {
	go func() {
		if _, err := shim.Wait(s.m.life, s.ID); err == nil {
			s.lost("PID 1 of the pod's shared PID namespace ended")
		} else if errors.Is(err, runtime.ErrShimGone) {
			s.shimLost(shim)
		}
	}()
}

// lost notes that the sandbox is not ready any more though nobody stopped it; the kubelet makes a new one.
func (s *Sandbox) lost(why string) {
	if r := s.facts(); r.ReadyAt == 0 || r.StoppedAt != 0 {
		return
	}
	s.log.Error("sandbox is lost", "why", why)
	s.learn(func(r *sandboxRecord) {
		if r.StoppedAt == 0 { // it may have been stopped since
			r.StoppedAt, r.Why = now(), why
		}
	})
	s.m.ended(s.ID)
}

// shimLost deals with a shim that died: its containers cannot go on without it (their pipes are broken and
// nobody reaps them), so they are ended, with their true exit facts where the shim wrote them.
func (s *Sandbox) shimLost(shim Shim) {
	s.mu.Lock()
	current := s.shim == shim
	if current {
		s.shim = nil
	}
	s.mu.Unlock()
	if !current || s.m.life.Err() != nil {
		return
	}
	shim.Close()
	s.lost("the pod's shim ended unexpectedly; its last words are in " + filepath.Join(s.paths.state, "shim.log"))
	for _, c := range s.containers() {
		c.orphaned(s.m.life, "the pod's shim ended unexpectedly, so the container was killed")
	}
}
