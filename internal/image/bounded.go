// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// bounded is a snapshotter of another process, whatever it does: each answer has a deadline, an error says whose it is, and answers that cannot be
// are errors. Nothing is asked before the daemon is up.
type bounded struct {
	inner snapshots.Snapshotter
	Remote
	// ready: the daemon is up. owed: what was removed here was not removed there, as far as is known.
	ready, owed atomic.Bool
}

// maxSnapshots bounds a list of a snapshotter, maxMounts the mounts of one snapshot.
const (
	maxSnapshots = 1 << 20
	maxMounts    = 8
)

var errAnswer = errors.New("the answer makes no sense")

// ask does one call.
func (b *bounded) ask(ctx context.Context, what string, call func(context.Context) error) (err error) {
	if !b.ready.Load() {
		return fmt.Errorf("snapshotter %s: %s: the daemon is not up yet: %w", b.Name, what, ErrSnapshotter)
	}
	limited, cancel := context.WithTimeoutCause(ctx, b.Timeout, fmt.Errorf("no answer in %s", b.Timeout))
	defer cancel()
	defer func() {
		if p := recover(); p != nil { // the client takes answers without what they must have for granted
			err = fmt.Errorf("snapshotter %s at %s: %s: %w: %v: %w", b.Name, b.Address, what, errAnswer, p, ErrSnapshotter)
		}
	}()
	err = call(limited)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case limited.Err() != nil:
		return fmt.Errorf("snapshotter %s at %s: %s: %w: %w", b.Name, b.Address, what, context.Cause(limited), ErrSnapshotter)
	case errdefs.IsAlreadyExists(err), errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err), errdefs.IsNotImplemented(err), errdefs.IsInvalidArgument(err):
		return fmt.Errorf("snapshotter %s: %s: %w", b.Name, what, err)
	}
	return fmt.Errorf("snapshotter %s at %s: %s: %w: %w", b.Name, b.Address, what, ErrSnapshotter, err)
}

func (b *bounded) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = b.ask(ctx, "stat", func(ctx context.Context) (err error) {
		info, err = b.inner.Stat(ctx, key)
		return err
	})
	return info, err
}

func (b *bounded) Update(ctx context.Context, info snapshots.Info, fields ...string) (out snapshots.Info, err error) {
	err = b.ask(ctx, "update", func(ctx context.Context) (err error) {
		out, err = b.inner.Update(ctx, info, fields...)
		return err
	})
	return out, err
}

func (b *bounded) Usage(ctx context.Context, key string) (u snapshots.Usage, err error) {
	err = b.ask(ctx, "usage", func(ctx context.Context) (err error) {
		u, err = b.inner.Usage(ctx, key)
		return err
	})
	return u, err
}

func (b *bounded) Mounts(ctx context.Context, key string) (m []mount.Mount, err error) {
	err = b.ask(ctx, "mounts", func(ctx context.Context) (err error) {
		m, err = b.inner.Mounts(ctx, key)
		return err
	})
	return m, err
}

func (b *bounded) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) (m []mount.Mount, err error) {
	err = b.ask(ctx, "prepare", func(ctx context.Context) (err error) {
		m, err = b.inner.Prepare(ctx, key, parent, opts...)
		return err
	})
	return m, err
}

func (b *bounded) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) (m []mount.Mount, err error) {
	err = b.ask(ctx, "view", func(ctx context.Context) (err error) {
		m, err = b.inner.View(ctx, key, parent, opts...)
		return err
	})
	return m, err
}

func (b *bounded) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return b.ask(ctx, "commit", func(ctx context.Context) error { return b.inner.Commit(ctx, name, key, opts...) })
}

func (b *bounded) Remove(ctx context.Context, key string) error {
	err := b.ask(ctx, "remove", func(ctx context.Context) error { return b.inner.Remove(ctx, key) })
	if errdefs.IsNotFound(err) {
		return nil // the collector wants it gone, no more
	}
	b.note(err)
	return err
}

// Walk, without filters, is the collector's: it gets what Berth has made alone, and would delete others'.
func (b *bounded) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	n := 0
	err := b.ask(ctx, "list", func(ctx context.Context) error {
		return b.inner.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			if n++; n > maxSnapshots {
				return fmt.Errorf("more than %d snapshots: %w", maxSnapshots, errAnswer)
			}
			if len(filters) == 0 && info.Labels[ownerLabel] == "" {
				return nil
			}
			return fn(ctx, info)
		}, filters...)
	})
	b.note(err)
	return err
}

// Cleanup implements snapshots.Cleaner.
func (b *bounded) Cleanup(ctx context.Context) error {
	c, ok := b.inner.(snapshots.Cleaner)
	if !ok {
		return nil
	}
	err := b.ask(ctx, "clean up", c.Cleanup)
	if errdefs.IsNotImplemented(err) {
		return nil
	}
	b.note(err)
	return err
}

func (b *bounded) Close() error { return b.inner.Close() }

// note remembers that a removal did not come about.
func (b *bounded) note(err error) {
	if err != nil && !errdefs.IsFailedPrecondition(err) {
		b.owed.Store(true)
	}
}

// Remote is a snapshotter that another daemon serves with containerd's snapshots API: stargz, SOCI, nydus.
type Remote struct {
	Name string
	// Address is its unix socket, Timeout bounds each of its answers.
	Address string
	Timeout time.Duration
}
