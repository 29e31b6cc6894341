// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/nri"
	"github.com/berth-run/berth/internal/runtime"
)

// StopContainer asks a container to end with its stop signal, and kills it after the grace period. It is idempotent;
// not running and unknown are success. A later call with a shorter grace period shortens the one in flight.
// Errors: ErrInFlight.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.ContainerByID(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return c.within(ctx, grace, opStop, c.stop)
}

// Kinds of operations that end a container, by its patience.
const (
	opStop   = "StopContainer"
	opRemove = "RemoveContainer"
)

// within runs one of those; all of them that are in flight, or wait, have no more patience than grace then.
func (c *Container) within(ctx context.Context, grace time.Duration, kind string, fn func(context.Context) error) error {
	at := time.Now().Add(grace)
	c.patience.join(at)
	defer c.patience.leave(func() bool { return c.ops.isOf(opStop, opRemove) })
	return c.ops.do(ctx, kind, func(ctx context.Context) error {
		c.patience.shorten(at) // again: the operation before may have ended, and cleared it, since
		return fn(ctx)
	})
}

func (c *Container) stop(ctx context.Context) error {
	defer c.patience.clear()
	if c.facts().state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	at, _ := c.patience.look()
	if time.Until(at) > 0 {
		if err := c.signal(ctx, c.facts().StopSignal, false); err != nil {
			c.log.WarnContext(ctx, "stop signal", "error", err)
		} else if c.patience.wait(ctx, c.done) {
			return nil
		}
	}
	return c.kill(ctx)
}

// kill ends the container with SIGKILL and waits until it is gone. A signal that could not be sent is sent again.
func (c *Container) kill(ctx context.Context) error {
	end := time.NewTimer(killTimeout)
	defer end.Stop()
	for {
		err := c.signal(ctx, sigkill, true)
		var again <-chan time.Time
		if err != nil {
			c.log.WarnContext(ctx, "kill through the shim", "error", err)
			again = time.After(killPause)
		}
		select {
		case <-c.done:
			return nil
		case <-again:
		case <-end.C:
			if err != nil {
				return fmt.Errorf("%s: SIGKILL cannot be sent for %s: %w: %w", c, killTimeout, ErrUnavailable, err)
			}
			return fmt.Errorf("%s: still there %s after SIGKILL; process %d hangs in the kernel (see /proc/%[3]d/stack): %w",
				c, killTimeout, c.Status().PID, ErrUnavailable)
		}
	}
}

func (c *Container) signal(ctx context.Context, signal int, all bool) error {
	shim := c.sandbox.theShim()
	if shim == nil {
		return runtime.ErrShimGone
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	err := shim.Kill(ctx, c.ID, signal, all)
	if errors.Is(err, runtime.ErrNotFound) { // gone in the meantime; its exit is on the way
		return nil
	}
	return err
}

// halt kills the container if it runs, and waits until it has ended: not until what it held to run is free.
func (c *Container) halt(ctx context.Context) error {
	if c.facts().state() == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil
	}
	return c.within(ctx, 0, opStop, c.stop)
}

// RemoveContainer removes a container, by force if it runs. It is idempotent; unknown is success.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.ContainerByID(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return c.forceRemove(ctx)
}

// forceRemove removes the container whatever it does; a patient StopContainer in flight is cut short.
func (c *Container) forceRemove(ctx context.Context) error {
	return c.within(ctx, 0, opRemove, c.remove)
}

func (c *Container) remove(ctx context.Context) error {
	defer c.patience.clear()
	if c.isRemoved() {
		return nil
	}
	c.learn(func(r *containerRecord) { r.RemovedAt = now() })
	if c.facts().state() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if err := c.kill(ctx); err != nil {
			return err
		}
	}
	if c.plan.Held(stepTask) {
		c.toldStopped(ctx)
	}
	var last *nri.Container
	if c.m.hooks() != nil {
		h := c.forHooks() // now: its spec goes with the bundle
		last = &h
	}
	if err := c.plan.Down(ctx); err != nil {
		return err
	}
	if err := c.disappear(ctx, last); err != nil {
		return err
	}
	c.log.InfoContext(ctx, "container is removed")
	return nil
}

// disappear tells of the end of the container, last seen so if anybody listened then.
func (c *Container) disappear(ctx context.Context, last *nri.Container) error {
	defer c.m.hold()()
	if h := c.m.hooks(); h != nil && c.facts().CreatedAt != 0 {
		if last == nil {
			now := c.forHooks()
			last = &now
		}
		h.Tell(ctx, nri.RemoveContainer, c.sandbox.forHooks(), last)
	}
	return c.erase()
}
