// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"time"
)

// turn is one of the places at which layers are unpacked, and the time that unpacking may take. Both are given back while the layer waits for
// its download, which has limits of its own. Its methods are for one goroutine at a time.
type turn struct {
	// ctx ends when the time is over.
	ctx    context.Context
	cancel context.CancelCauseFunc
	u      *unpacking
	held   bool
	left   time.Duration
	until  time.Time
	timer  *time.Timer
}

// turn waits for a turn to unpack a layer. Only from then on time is limited: what a layer waits for before, the network and others, has
// other limits.
func (u *unpacking) turn(ctx context.Context) (*turn, error) {
	t := &turn{u: u, left: u.s.cfg.UnpackTimeout}
	t.ctx, t.cancel = context.WithCancelCause(ctx)
	if err := t.resume(); err != nil {
		t.cancel(nil)
		return nil, err
	}
	u.progress.at("unpack")
	return t, nil
}

// resume waits for a place, and time goes on.
func (t *turn) resume() error {
	if err := t.u.s.unpacks.Acquire(t.ctx, 1); err != nil {
		return context.Cause(t.ctx)
	}
	t.held = true
	limit := t.u.s.cfg.UnpackTimeout
	if limit <= 0 {
		return nil
	}
	late := func() { t.cancel(fmt.Errorf("not done in %s: %w", limit, ErrUnavailable)) }
	if t.until = time.Now().Add(t.left); time.Until(t.until) <= 0 {
		late()
	} else {
		t.timer = time.AfterFunc(t.left, late)
	}
	return nil
}

// pause gives the place to another layer, and time stands still.
func (t *turn) pause() {
	if !t.held {
		return
	}
	t.held = false
	if t.timer != nil {
		t.timer.Stop()
		t.left = time.Until(t.until)
	}
	t.u.s.unpacks.Release(1)
}

func (t *turn) end() {
	t.pause()
	t.cancel(nil)
}
