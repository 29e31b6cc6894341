// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"slices"
	"time"
)

// Operation is work on a sandbox or a container that is not done. It outlives the request that asked for it, whose caller may have lost patience.
type Operation struct {
	// Kind is what is done, as errors name it.
	Kind string
	// ID is the object's, Object its name in errors.
	ID, Object string
	Since      time.Time
	// Stage tells the steps that are under way, or what else may hang, each with its age; "" between steps.
	Stage string
}

// Operations lists the work in flight, the oldest first.
func (m *Manager) Operations() []Operation {
	m.mu.RLock()
	sandboxes, containers := make([]*Sandbox, 0, len(m.sandboxes)), make([]*Container, 0, len(m.containers))
	for _, s := range m.sandboxes {
		sandboxes = append(sandboxes, s)
	}
	for _, c := range m.containers {
		containers = append(containers, c)
	}
	m.mu.RUnlock()
	var all []Operation
	for _, s := range sandboxes {
		for _, o := range []*ops{&s.ops, &s.checkpoints} {
			if op, ok := o.current(); ok {
				op.ID = s.ID
				all = append(all, op)
			}
		}
	}
	for _, c := range containers {
		for _, o := range []*ops{&c.ops, &c.checkpoints} {
			if op, ok := o.current(); ok {
				op.ID = c.ID
				all = append(all, op)
			}
		}
	}
	slices.SortFunc(all, func(a, b Operation) int { return a.Since.Compare(b.Since) })
	return all
}

// current is the operation in flight.
func (o *ops) current() (Operation, bool) {
	o.mu.Lock()
	cur := o.cur
	o.mu.Unlock()
	if cur == nil {
		return Operation{}, false
	}
	return Operation{Kind: cur.kind, Object: o.object, Since: cur.since, Stage: o.stageOf(cur)}, true
}

// isOf tells whether the operation in flight is of one of the kinds.
func (o *ops) isOf(kinds ...string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cur != nil && slices.Contains(kinds, o.cur.kind)
}
