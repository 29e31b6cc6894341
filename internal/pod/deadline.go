// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"sync"
	"time"
)

// deadline is an instant that may only move nearer: a StopContainer with a shorter grace period, or a forced
// removal, overrides the longer one in flight.
type deadline struct {
	mu      sync.Mutex
	at      time.Time     // zero: none set
	changed chan struct{} // closed and replaced when at moves
	waiting int           // callers between join and leave
}

// shorten moves the deadline to t if that is sooner.
func (d *deadline) shorten(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at.IsZero() || t.Before(d.at) {
		d.at = t
		if d.changed != nil {
			close(d.changed)
			d.changed = nil
		}
	}
}

// join is shorten for a caller that waits for what the deadline is for, until it calls leave.
func (d *deadline) join(t time.Time) {
	d.mu.Lock()
	d.waiting++
	d.mu.Unlock()
	d.shorten(t)
}

// leave forgets the deadline with the last caller, unless what it is for is under way: who gives up before that has begun wants nothing of the next.
func (d *deadline) leave(underWay func() bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting--; d.waiting == 0 && !underWay() {
		d.at = time.Time{}
	}
}

// clear forgets the deadline, for the next stop.
func (d *deadline) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = time.Time{}
}

func (d *deadline) look() (time.Time, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.at, d.changed
}

// wait blocks until done is closed (true), the deadline has passed or ctx has ended (false).
func (d *deadline) wait(ctx context.Context, done <-chan struct{}) bool {
	for {
		at, changed := d.look()
		timer := time.NewTimer(time.Until(at))
		select {
		case <-done:
			timer.Stop()
			return true
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
			return false
		case <-changed:
			timer.Stop()
		}
	}
}
