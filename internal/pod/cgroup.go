// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// cgroupParents orders who joins, leaves and removes a cgroup that several pods may live in. A kubelet gives each pod its own; other clients name
// the same one again and again. The zero value is ready.
type cgroupParents struct {
	mu sync.Mutex // guards all below and Sandbox.inCgroup; taken before Manager.mu and the ledgers' locks
	// leaving has the cgroups that are being removed, each with what is closed when that has ended.
	leaving map[string]chan struct{}
}

// joinCgroup makes the sandbox one of those that live in its cgroup parent, and tells whether that is theirs: it goes with the last of them. It waits for a
// removal under way, which kills whatever is in the cgroup.
func (s *Sandbox) joinCgroup(ctx context.Context) (own bool, err error) {
	parent, all := s.facts().CgroupParent, &s.m.cgroups
	for {
		all.mu.Lock()
		removal := all.leaving[parent]
		if removal == nil {
			s.inCgroup = true
			all.mu.Unlock()
			break
		}
		all.mu.Unlock()
		select {
		case <-removal:
		case <-ctx.Done():
			return false, fmt.Errorf("%s: the last pod in cgroup %s is being removed: %w", s, parent, context.Cause(ctx))
		}
	}
	exists, err := s.m.parts.Host.CgroupExists(parent)
	if err != nil {
		return false, fmt.Errorf("%s: %w", s, err)
	}
	return !exists, nil
}

func (s *Sandbox) makeCgroup(ctx context.Context) error {
	return s.m.parts.Host.CreateCgroup(ctx, s.facts().CgroupParent)
}

func (s *Sandbox) removeCgroup(ctx context.Context) error {
	ended := s.leaveCgroup()
	if ended == nil {
		return nil
	}
	defer ended()
	return s.m.parts.Host.RemoveCgroup(ctx, s.facts().CgroupParent)
}

// leaveCgroup returns nil unless the cgroup parent goes with this sandbox; then it is to be called when that is gone, or is still there after an error.
// A cgroup that other pods live in goes with the last of them.
func (s *Sandbox) leaveCgroup() (ended func()) {
	all := &s.m.cgroups
	all.mu.Lock()
	defer all.mu.Unlock()
	s.inCgroup = false
	r := s.facts()
	if !r.OwnCgroup {
		return nil
	}
	if heir := s.m.cgroupHeir(r.CgroupParent); heir != nil {
		heir.learn(func(r *sandboxRecord) { r.OwnCgroup = true })
		s.learn(func(r *sandboxRecord) { r.OwnCgroup = false })
		return nil
	}
	removal := make(chan struct{})
	if all.leaving == nil {
		all.leaving = map[string]chan struct{}{}
	}
	all.leaving[r.CgroupParent] = removal
	return func() {
		all.mu.Lock()
		defer all.mu.Unlock()
		delete(all.leaving, r.CgroupParent)
		close(removal)
	}
}

// cgroupHeir is a sandbox that lives in the cgroup; nil: none. Preconditions: m.cgroups.mu is held.
func (m *Manager) cgroupHeir(parent string) *Sandbox {
	m.mu.RLock()
	all := slices.Collect(maps.Values(m.sandboxes))
	m.mu.RUnlock()
	for _, s := range all {
		if s.inCgroup && s.facts().CgroupParent == parent {
			return s
		}
	}
	return nil
}
