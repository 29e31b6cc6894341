// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// limits are the registries that sessions talk to now, with the connections that each may have.
type limits struct {
	mu  sync.Mutex // guards all and each limit's users
	all map[string]*limit
}

type limit struct {
	domain string
	users  int
	slots  *semaphore.Weighted // nil: no limit
}

func (l *limits) take(domain string, most int) *limit {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.all[domain]
	if one == nil {
		one = &limit{domain: domain}
		if most > 0 {
			one.slots = semaphore.NewWeighted(int64(most))
		}
		if l.all == nil {
			l.all = map[string]*limit{}
		}
		l.all[domain] = one
	}
	one.users++
	return one
}

func (l *limits) give(one *limit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(l.all, one.domain)
	}
}

// Acquire waits for a connection of the registry's own share. It is to be taken before one of the node's, so that who waits for a busy
// registry does not hold up the others.
func (s *Session) Acquire(ctx context.Context) error {
	if s.limit.slots == nil {
		return ctx.Err()
	}
	return s.limit.slots.Acquire(ctx, 1)
}

// Release gives back what Acquire took.
func (s *Session) Release() {
	if s.limit.slots != nil {
		s.limit.slots.Release(1)
	}
}

// Share are the free slots of the node, as far as the registry's own share allows.
func (s *Session) Share(node Slots) Slots { return share{s, node} }

type share struct {
	s    *Session
	node Slots
}

// TryAcquire implements Slots.
func (h share) TryAcquire(n int64) bool {
	own := h.s.limit.slots
	if own != nil && !own.TryAcquire(n) {
		return false
	}
	if h.node.TryAcquire(n) {
		return true
	}
	if own != nil {
		own.Release(n)
	}
	return false
}

// Release implements Slots.
func (h share) Release(n int64) {
	h.node.Release(n)
	if own := h.s.limit.slots; own != nil {
		own.Release(n)
	}
}
