// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/nri"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/spec"
)

// ExecSync runs a command in a running container and returns its output and exit code. With a timeout above 0 the
// command and all it started are killed when it is over (runtime.ErrExecTimeout). Unlike the other operations it ends with
// its caller. Errors: ErrNotFound, ErrState, ErrInvalid.
func (m *Manager) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (runtime.ExecResult, error) {
	c, shim, err := m.running(id)
	if err != nil {
		return runtime.ExecResult{}, err
	}
	process, err := c.execProcess(cmd, false, runtime.Size{})
	if err != nil {
		return runtime.ExecResult{}, c.useFailed(err)
	}
	result, err := shim.ExecSync(ctx, c.ID, runtime.ExecRequest{ID: newID(), Process: process, Timeout: timeout, Limit: m.cfg.ExecOutputLimit})
	if err != nil {
		return result, c.useFailed(fmt.Errorf("%s: exec %q: %w", c, cmd[0], err))
	}
	return result, nil
}

// useFailed adds what has become of the container meanwhile to the error of what needs a running one: whatever has failed first then, it was
// no fault of the request.
func (c *Container) useFailed(err error) error {
	for _, other := range []error{ErrInvalid, runtime.ErrExecTimeout, runtime.ErrClientGone, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, other) {
			return err
		}
	}
	state := c.Status().State
	switch {
	case c.isRemoved():
		return fmt.Errorf("%w: the container was removed meanwhile: %w", err, ErrNotFound)
	case state != runtimeapi.ContainerState_CONTAINER_RUNNING:
		return fmt.Errorf("%w: the container is not running any more but %s: %w", err, stateName(state), ErrState)
	case errors.Is(err, runtime.ErrState), errors.Is(err, runtime.ErrNotFound): // the shim knows first
		return fmt.Errorf("%w: %w", err, ErrState)
	}
	return err
}

// execProcess is what runs cmd as the container's own process would run.
func (c *Container) execProcess(cmd []string, tty bool, size runtime.Size) ([]byte, error) {
	if len(cmd) == 0 {
		return nil, fmt.Errorf("%s: exec: cmd is empty: %w", c, ErrInvalid)
	}
	config, err := os.ReadFile(c.paths.spec)
	if err != nil {
		return nil, fmt.Errorf("%s: exec: %w", c, err)
	}
	process, err := c.m.parts.Specs.Exec(config, spec.Exec{Cmd: cmd, TTY: tty, Width: size.Width, Height: size.Height, OOMScoreAdj: c.updatedOOMScore()})
	if err != nil {
		return nil, fmt.Errorf("%s: exec: %w", c, err)
	}
	return process, nil
}

// updatedOOMScore is what an update has set that is not in the config.json; nil: none.
func (c *Container) updatedOOMScore() *int64 {
	now := c.Status().Resources.GetOomScoreAdj()
	if now == c.Config.GetLinux().GetResources().GetOomScoreAdj() {
		return nil
	}
	return &now
}

// running finds a container that runs, with its shim.
func (m *Manager) running(id string) (*Container, Shim, error) {
	c, err := m.ContainerByID(id)
	if err != nil {
		return nil, nil, err
	}
	if st := c.Status(); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, nil, fmt.Errorf("%s: is not running but %s: %w", c, stateName(st.State), ErrState)
	}
	shim := c.sandbox.theShim()
	if shim == nil {
		return nil, nil, fmt.Errorf("%s: the pod's shim is gone: %w", c, ErrUnavailable)
	}
	return c, shim, nil
}

func stateName(s runtimeapi.ContainerState) string {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return "created"
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "running"
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return "exited"
	}
	return "unknown"
}

// ReopenLog makes the container's log go on in a new file at the same path, after the caller has moved the old one
// away. Errors: ErrNotFound, ErrState (not running: no file is made).
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, shim, err := m.running(id)
	if err != nil {
		return err
	}
	if c.paths.log == "" {
		return nil
	}
	if err := shim.ReopenLog(ctx, c.ID); errors.Is(err, runtime.ErrNotFound) {
		return fmt.Errorf("%s: has just exited: %w", c, ErrState)
	} else if err != nil {
		return fmt.Errorf("%s: reopen log: %w", c, err)
	}
	return nil
}

// UpdateResources changes the resources of a created or running container; zero values leave a field as it is.
// Errors: ErrNotFound, ErrState, ErrInvalid, ErrInFlight.
func (m *Manager) UpdateResources(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := m.ContainerByID(id)
	if err != nil {
		return err
	}
	if r == nil {
		return fmt.Errorf("%s: update resources: linux is empty: %w", c, ErrInvalid)
	}
	// Two different updates must not be joined into one, as two operations of the same kind would be.
	kind := fmt.Sprintf("UpdateContainerResources %s", newID()[:8])
	return c.ops.do(ctx, kind, func(ctx context.Context) error { return c.updateResources(ctx, r) })
}

// updateResources changes the resources as plugins want it.
func (c *Container) updateResources(ctx context.Context, r *runtimeapi.LinuxContainerResources) error {
	h := c.m.hooks()
	if h == nil || c.isRemoved() || c.facts().FinishedAt != 0 {
		return c.changeResources(ctx, r)
	}
	r, others, err := h.UpdateContainer(ctx, c.sandbox.forHooks(), c.forHooks(), r)
	if err == nil {
		_, err = c.m.HookUpdate(ctx, others)
	}
	if err != nil {
		return fmt.Errorf("%s: update resources: %w", c, err)
	}
	if err := c.changeResources(ctx, r); err != nil {
		return err
	}
	c.tell(ctx, nri.PostUpdateContainer)
	return nil
}

func (c *Container) changeResources(ctx context.Context, r *runtimeapi.LinuxContainerResources) error {
	state := c.facts().state()
	if c.isRemoved() || state == runtimeapi.ContainerState_CONTAINER_EXITED {
		return fmt.Errorf("%s: update resources: has exited: %w", c, ErrState)
	}
	old := c.Status().Resources
	oci, merged, err := c.m.parts.Specs.Update(old, r)
	if err != nil {
		return fmt.Errorf("%s: update resources: %w", c, err)
	}
	if state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if merged, err = c.applyResources(ctx, oci, merged); err != nil {
			return err
		}
	}
	if err := c.keepResources(merged); err != nil {
		return err
	}
	if state == runtimeapi.ContainerState_CONTAINER_CREATED {
		return c.rewriteSpec(merged)
	}
	return nil
}

// applyResources changes the running container and returns what is in force then: who asks for a status shall see what the kernel has taken.
func (c *Container) applyResources(ctx context.Context, oci []byte, want *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	shim := c.sandbox.theShim()
	if shim == nil {
		return nil, fmt.Errorf("%s: update resources: the pod's shim is gone: %w", c, ErrUnavailable)
	}
	if err := shim.Update(ctx, c.ID, oci); err != nil {
		return nil, c.useFailed(fmt.Errorf("%s: update resources: %w", c, err))
	}
	path := c.sandbox.cgroupsPath(c.ID)
	if want.GetOomScoreAdj() != c.Status().Resources.GetOomScoreAdj() { // the OCI runtime sets it at the start only
		if err := c.m.parts.Host.SetOOMScore(path, want.GetOomScoreAdj()); err != nil {
			return nil, fmt.Errorf("%s: update resources: %w", c, err)
		}
	}
	got, err := c.m.parts.Host.InForce(path, want)
	if err != nil {
		return nil, fmt.Errorf("%s: update resources: read them back: %w", c, err)
	}
	return got, nil
}

func (c *Container) keepResources(merged *runtimeapi.LinuxContainerResources) error {
	raw, err := protojson.Marshal(merged)
	if err != nil {
		return fmt.Errorf("%s: encode resources: %w", c, err)
	}
	c.mu.Lock()
	before := c.resources
	c.resources = merged
	c.mu.Unlock()
	if err := c.update(func(rec *containerRecord) { rec.Resources = raw }); err != nil {
		c.mu.Lock()
		c.resources = before
		c.mu.Unlock()
		return err
	}
	return nil
}

// rewriteSpec brings new resources into the config.json of a container that is not started yet, and leaves the rest as plugins made it.
func (c *Container) rewriteSpec(r *runtimeapi.LinuxContainerResources) error {
	config, err := os.ReadFile(c.paths.spec)
	if err == nil {
		config, err = c.m.parts.Specs.SetResources(config, r)
	}
	if err == nil {
		err = c.saveSpec(config)
	}
	if err != nil {
		return fmt.Errorf("%s: update resources: %w", c, err)
	}
	return nil
}

// configNow is the config with the resources of the last update in it.
func (c *Container) configNow() *runtimeapi.ContainerConfig {
	c.mu.Lock()
	resources := c.resources
	c.mu.Unlock()
	if resources == c.Config.GetLinux().GetResources() {
		return c.Config
	}
	config := proto.Clone(c.Config).(*runtimeapi.ContainerConfig)
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	config.Linux.Resources = resources
	return config
}
