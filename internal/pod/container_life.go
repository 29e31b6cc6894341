// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/nri"
	"github.com/berth-run/berth/internal/runtime"
)

const (
	sigkill = int(syscall.SIGKILL)
	// killTimeout is how long a container may take to vanish after SIGKILL: longer means the kernel holds it.
	killTimeout = 2 * time.Minute
	// killPause is between two tries to send it.
	killPause = time.Second
)

// CreateContainer makes a container in a ready sandbox and returns its ID. A repeated call joins the one in
// flight, and returns the same ID when that is done already. Errors: ErrNotFound (sandbox, image), ErrState
// (sandbox not ready), ErrInvalid, ErrExists (same name, another config), ErrInFlight.
func (m *Manager) CreateContainer(ctx context.Context, sandboxID string, config *runtimeapi.ContainerConfig) (string, error) {
	s, err := m.SandboxByID(sandboxID)
	if err != nil {
		return "", err
	}
	if err := m.parts.Specs.ValidateContainer(config, s.Config); err != nil {
		return "", fmt.Errorf("%s: %w", s, err)
	}
	for {
		c, err := s.reserveContainer(config, nil)
		if err != nil {
			return "", err
		}
		if err = c.ops.do(ctx, "CreateContainer", c.create); errors.Is(err, errGone) {
			continue
		}
		if err == nil && !proto.Equal(c.Config, config) {
			return "", fmt.Errorf("%s: a container of this name and attempt exists with another configuration; remove it first: %w", c, ErrExists)
		}
		return c.ID, err
	}
}

func (s *Sandbox) reserveContainer(config *runtimeapi.ContainerConfig, from *source) (*Container, error) {
	raw, err := protojson.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode container config: %w: %w", ErrInvalid, err)
	}
	m, name := s.m, containerName(s.ID, config)
	m.mu.Lock()
	defer m.mu.Unlock()
	if id, ok := m.names[name]; ok {
		return m.containers[id], nil
	}
	id := newID()
	c, err := s.newContainer(containerRecord{ID: id, SandboxID: s.ID, Config: raw, Restore: from != nil}, config)
	if err != nil {
		return nil, err
	}
	c.source = from
	m.containers[id], m.names[name] = c, id
	return c, nil
}

// create takes the container from its name to CREATED.
func (c *Container) create(ctx context.Context) error {
	r := c.facts()
	switch {
	case c.isRemoved():
		return errGone
	case r.RemovedAt != 0: // half of it may be gone: it is not what the caller asks for
		return cmp.Or(c.remove(ctx), errGone)
	case r.CreatedAt != 0:
		return nil
	case len(r.Begun) > 0: // an attempt that could not be rolled back: first away with it
		return cmp.Or(c.remove(ctx), errGone)
	}
	if c.source == nil && !c.sandbox.Status().Ready {
		c.forget()
		return fmt.Errorf("%s: %s is not ready: %w", c, c.sandbox, ErrState)
	}
	im, err := c.findImage()
	if err == nil {
		err = c.sameImage(im)
	}
	if err != nil {
		c.forget()
		return err
	}
	images, places, err := c.resolveVolumes(im)
	if err == nil {
		err = c.checkTarget()
	}
	if err != nil {
		c.forget()
		return fmt.Errorf("%s: create: %w", c, err)
	}
	labels, err := c.chooseLabels()
	if err != nil {
		c.forget()
		return fmt.Errorf("%s: create: %w", c, err)
	}
	// The record comes before the first side effect: from here on a crash finds what to release.
	err = c.update(func(r *containerRecord) {
		r.ImageID, r.ImageRef, r.MountImages, r.Volumes, r.SELinux = im.ID, imageRef(im), images, places, labels
	})
	if err != nil {
		c.m.releaseLabels(labels)
		return errors.Join(err, c.erase())
	}
	err = c.plan.UpTo(ctx, c.toCreate()...)
	if err == nil {
		if err = c.checkLog(); err == nil {
			err = c.appear(ctx, im)
		}
		if err != nil {
			err = fmt.Errorf("%s: create: %w", c, err)
		}
	}
	if err != nil {
		return errors.Join(err, c.abandon(ctx))
	}
	c.log.InfoContext(ctx, "container is created")
	c.tell(ctx, nri.PostCreateContainer)
	return nil
}

// appear makes the container CREATED, with a spec that plugins may adjust or refuse: nobody sees it before they have answered.
func (c *Container) appear(ctx context.Context, im image.Image) error {
	spec, err := c.makeSpec(im)
	if err != nil {
		return err
	}
	defer c.m.hold()()
	made, err := c.askCreate(ctx, spec.JSON)
	if err != nil {
		return err
	}
	if err = c.saveSpec(made.Spec); err == nil && made.Resources != nil {
		err = c.keepResources(made.Resources)
	}
	if err == nil {
		err = c.update(func(r *containerRecord) {
			r.CreatedAt, r.StopSignal, r.UID, r.GID, r.Groups = now(), spec.StopSignal, spec.UID, spec.GID, spec.Groups
		})
	}
	if err != nil {
		c.undoCreate(ctx)
	}
	return err
}

// imageRef is what ContainerStatus.image_ref wants: a digest reference where the image has one.
func imageRef(im image.Image) string {
	if len(im.RepoDigests) > 0 {
		return im.RepoDigests[0]
	}
	return im.ID
}

// abandon ends a creation that failed: without a trace where all could be released, else as an exited container
// that waits for its removal.
func (c *Container) abandon(ctx context.Context) error {
	if err := c.plan.Down(ctx); err != nil {
		c.learn(func(r *containerRecord) {
			r.FinishedAt, r.ExitCode, r.Reason, r.Message = now(), startErrorCode, ReasonError, "creation failed and could not be rolled back"
		})
		return err
	}
	return c.erase()
}

func (c *Container) erase() error {
	if err := c.strike(func() error { return nil }); err != nil {
		return err
	}
	c.forget()
	return nil
}

func (c *Container) forget() {
	c.vanish()
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.m.containers[c.ID] == c { // the first time
		c.m.releaseLabels(c.facts().SELinux)
	}
	delete(c.m.containers, c.ID)
	delete(c.m.names, containerName(c.sandbox.ID, c.Config))
}

// StartContainer starts a created container. It succeeds also when the container runs already, so that a retry after a lost answer
// is no error. A start that fails makes the container EXITED with reason StartError. Errors: ErrNotFound, ErrState, ErrInFlight.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.ContainerByID(id)
	if err != nil {
		return err
	}
	return c.ops.do(ctx, "StartContainer", c.start)
}

func (c *Container) start(ctx context.Context) error {
	if c.isRemoved() { // while this waited for its turn
		return fmt.Errorf("%s: %w", c, ErrNotFound)
	}
	r := c.facts()
	switch r.state() {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return nil
	case runtimeapi.ContainerState_CONTAINER_CREATED:
	default:
		return fmt.Errorf("%s: has exited; only a created container can be started: %w", c, ErrState)
	}
	if r.RemovedAt != 0 {
		return fmt.Errorf("%s: its removal has begun; remove it again, then create another: %w", c, ErrState)
	}
	if !c.sandbox.Status().Ready {
		return fmt.Errorf("%s: %s is not ready: %w", c, c.sandbox, ErrState)
	}
	// Of a start that was cut off, and could not be released when the daemon came back.
	if err := c.plan.DownTo(ctx, stepTask); err != nil {
		return err
	}
	if err := c.askStart(ctx); err != nil {
		err = fmt.Errorf("%s: start: %w", c, err)
		c.failedStart(err)
		return err
	}
	if err := c.plan.UpTo(ctx, stepTask); err != nil {
		c.failedStart(err)
		c.toldStopped(ctx)
		return err
	}
	c.log.InfoContext(ctx, "container is started", "pid", c.Status().PID)
	c.restored(ctx)
	c.watch()
	c.tell(ctx, nri.PostStartContainer)
	return nil
}

func (c *Container) askStart(ctx context.Context) error {
	h := c.m.hooks()
	if h == nil {
		return nil
	}
	c.ops.doing(askingPlugins)
	defer c.ops.doing("")
	hc := c.forHooks()
	return h.Ask(ctx, nri.StartContainer, c.sandbox.forHooks(), &hc)
}

func (c *Container) failedStart(err error) {
	c.exited(func(r *containerRecord) {
		r.StartedAt, r.PID, r.FinishedAt, r.ExitCode, r.Reason, r.Message = 0, 0, now(), startErrorCode, ReasonStartError, err.Error()
	})
}

// watch waits for the exit in the background.
func (c *Container) watch() {
	shim := c.sandbox.theShim()
	if shim == nil {
		go c.orphaned(c.m.life, "the pod's shim is gone, so the container was killed")
		return
	}
	go func() {
		exit, err := shim.Wait(c.m.life, c.ID)
		switch {
		case err == nil:
			c.finish(exit)
		case c.m.life.Err() != nil, errors.Is(err, runtime.ErrClosed): // the daemon lets go of the shim; the container goes on
		case errors.Is(err, runtime.ErrShimGone):
			c.sandbox.shimLost(shim)
		default:
			c.log.Error("wait for container", "error", err)
			c.orphaned(c.m.life, "its shim does not know the container any more, so it was killed")
		}
	}()
}

// finish takes the shim's exit facts, then frees the task.
func (c *Container) finish(exit runtime.Exit) { c.finishFor(exit, "") }

// finishFor is finish with a reason for people, which is seen together with the exit.
func (c *Container) finishFor(exit runtime.Exit, why string) {
	c.exited(func(r *containerRecord) {
		if !exit.StartedAt.IsZero() { // the shim saw the start before the daemon did
			r.StartedAt = exit.StartedAt.UnixNano()
		}
		r.PID, r.FinishedAt, r.ExitCode = 0, exit.ExitedAt.UnixNano(), int32(exit.Code)
		switch {
		case exit.OOMKilled:
			r.Reason = ReasonOOMKilled
		case exit.Code == 0:
			r.Reason = ReasonCompleted
		default:
			r.Reason = ReasonError
		}
		r.Message = why
		if exit.LogBytesDropped > 0 {
			r.Message = fmt.Sprintf("%d bytes of its output could not be written to the log", exit.LogBytesDropped)
		}
	})
	if o := c.m.parts.Observer; o != nil && exit.LogBytesDropped > 0 {
		o.LogDropped(exit.LogBytesDropped)
	}
	c.settleLogged(c.m.life)
}

// settleLogged is settle as an operation, for those whom nobody asked for it.
func (c *Container) settleLogged(ctx context.Context) {
	if err := c.ops.do(ctx, "settle", c.settle); err != nil && c.m.life.Err() == nil {
		c.log.Warn("exited container is not cleaned up yet; its removal will try again", "error", err)
	}
}

// exited makes the exit known, once: who reports first is right.
func (c *Container) exited(f func(*containerRecord)) {
	first := false
	c.learn(func(r *containerRecord) {
		if r.FinishedAt == 0 {
			f(r)
		}
	})
	c.mu.Lock()
	select {
	case <-c.done:
	default:
		close(c.done)
		first = true
	}
	c.mu.Unlock()
	if st := c.Status(); first {
		c.m.ended(c.ID)
		c.log.Info("container has exited", "exit_code", st.ExitCode, "reason", st.Reason)
	}
}

// settle frees what a container held only to run: cgroup, runtime state, the shim's memory of it.
func (c *Container) settle(ctx context.Context) error {
	if c.isRemoved() {
		return nil
	}
	if c.plan.Held(stepTask) {
		c.toldStopped(ctx)
	}
	return c.plan.DownTo(ctx, stepTask)
}

// orphaned ends a running container that has no shim: with the exit facts that the shim left, or else killed.
func (c *Container) orphaned(ctx context.Context, why string) {
	if c.facts().state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return
	}
	if exit, ok, err := c.m.parts.Runtime.ReadExit(c.paths.bundle); ok {
		c.finish(exit)
		return
	} else if err != nil {
		c.log.Warn("read exit facts", "error", err)
	}
	if err := c.m.parts.Runtime.KillLeftOver(ctx, c.sandbox.Handler, c.ID, c.paths.bundle); err != nil {
		c.log.Error("end container without its shim", "error", err)
	}
	c.finishFor(runtime.Exit{Code: 128 + sigkill, ExitedAt: time.Now()}, why)
}
