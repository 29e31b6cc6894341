// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
)

// EventType is what happened to a sandbox or a container.
type EventType int

// The events of an object come in this order, each at most once. A sandbox is started when it is ready.
const (
	EventCreated EventType = iota + 1
	EventStarted
	EventStopped
	EventDeleted
)

func (t EventType) String() string {
	return [...]string{"none", "created", "started", "stopped", "deleted"}[t]
}

// Event tells of one transition, with what is true of the whole pod at that instant.
type Event struct {
	Type EventType
	// ID is the container's or the sandbox's.
	ID string
	// At is the runtime's clock in Unix nanoseconds. It rises with each event of a pod, also when the clock is set back.
	At int64
	// Sandbox is the pod's; of a deleted one, its last.
	Sandbox *SandboxStatus
	// Containers are all of the pod's, without those that are being created or are removed.
	Containers []*ContainerStatus
}

var (
	// ErrEventsEnded is returned when the daemon shuts down.
	ErrEventsEnded = errors.New("the daemon is shutting down; subscribe again")
	// ErrSubscribers means that there are too many subscribers already.
	ErrSubscribers = errors.New("too many subscribers to events")
)

// maxSubscribers bounds the subscribers: a node has one kubelet and a few people.
const maxSubscribers = 64

// hub hands out events. Its mutex is a leaf: nothing else is locked while it is held.
type hub struct {
	subscribers atomic.Pointer[[]*Subscription] // replaced as a whole, under mu

	mu     sync.Mutex
	feeds  map[*feed]bool
	closed bool
}

func newHub() *hub {
	h := &hub{feeds: map[*feed]bool{}}
	h.subscribers.Store(&[]*Subscription{})
	return h
}

// feed makes one pod's events: every status of the pod is published through it, so that what an event tells is of one instant.
//
// Lock order: Container.mu or Sandbox.mu, feed.mu, Subscription.mu. Manager.mu may be held before all of them.
type feed struct {
	hub *hub
	// gone: the sandbox is removed; nothing comes any more.
	gone atomic.Bool

	mu         sync.Mutex // guards all below; held for the time that it takes to copy pointers
	last       int64
	sandbox    *SandboxStatus // the last that was not hidden
	containers map[string]*ContainerStatus
	id         string
}

func (h *hub) newFeed(id string) *feed {
	f := &feed{hub: h, id: id, containers: map[string]*ContainerStatus{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.feeds[f] = true
	return f
}

// forget is called for a sandbox that is removed, or whose creation came to nothing.
func (h *hub) forget(f *feed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.feeds, f)
}

// publishSandbox makes a status visible and tells of it, in one instant.
func (f *feed) publishSandbox(to *atomic.Pointer[SandboxStatus], st *SandboxStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := sandboxPhase(f.sandbox)
	to.Store(st)
	switch {
	case !st.Hidden:
		f.sandbox = st
		f.tell(f.id, before, sandboxPhase(st))
	case f.sandbox != nil && !f.gone.Load():
		f.gone.Store(true)
		f.tell(f.id, before, EventDeleted)
	}
}

// publishContainer makes a status visible and tells of it, in one instant.
func (f *feed) publishContainer(to *atomic.Pointer[ContainerStatus], st *ContainerStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.containers[st.ID]
	to.Store(st)
	switch {
	case !st.Hidden:
		f.containers[st.ID] = st
		f.tell(st.ID, containerPhase(old), containerPhase(st))
	case old != nil:
		delete(f.containers, st.ID)
		f.tell(st.ID, containerPhase(old), EventDeleted)
	}
}

// sandboxPhase is the last event that a status stands for; 0 before the first.
func sandboxPhase(st *SandboxStatus) EventType {
	switch {
	case st == nil:
		return 0
	case st.Ready:
		return EventStarted
	}
	return EventStopped
}

func containerPhase(st *ContainerStatus) EventType {
	switch {
	case st == nil:
		return 0
	case st.FinishedAt != 0:
		return EventStopped
	case st.StartedAt != 0:
		return EventStarted
	}
	return EventCreated
}

// tell makes the events of a transition. Preconditions: f.mu is held.
func (f *feed) tell(id string, before, now EventType) {
	if now <= before {
		return
	}
	if before == 0 && now != EventCreated {
		f.emit(id, EventCreated)
	}
	f.emit(id, now)
}

// Preconditions: f.mu is held.
func (f *feed) emit(id string, t EventType) {
	subscribers := *f.hub.subscribers.Load()
	e := queued{Event{Type: t, ID: id, At: f.tick()}, f}
	if len(subscribers) == 0 {
		return
	}
	e.Sandbox, e.Containers = f.sandbox, f.list()
	for _, s := range subscribers {
		s.offer(e)
	}
}

// tick is the time of the next event. Preconditions: f.mu is held.
func (f *feed) tick() int64 {
	f.last = max(now(), f.last+1)
	return f.last
}

// list is ordered by creation. Preconditions: f.mu is held.
func (f *feed) list() []*ContainerStatus {
	all := make([]*ContainerStatus, 0, len(f.containers))
	for _, c := range f.containers {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *ContainerStatus) int {
		return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Snapshot is what is true of the sandbox and all its containers at one instant, which is ordered with the pod's events.
func (s *Sandbox) Snapshot() (st *SandboxStatus, containers []*ContainerStatus, at int64) {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	return s.Status(), f.list(), f.tick()
}

// Subscribe begins a stream of events. It tells first of every sandbox and container that there is, by the last event of each, then of all
// that happens. Errors: ErrSubscribers, ErrEventsEnded.
func (m *Manager) Subscribe() (*Subscription, error) {
	h := m.events
	h.mu.Lock()
	defer h.mu.Unlock()
	subscribers := *h.subscribers.Load()
	switch {
	case h.closed:
		return nil, ErrEventsEnded
	case len(subscribers) >= maxSubscribers:
		return nil, ErrSubscribers
	}
	s := &Subscription{hub: h, limit: maxQueued, pending: make(map[*feed]bool, len(h.feeds)), told: map[*feed]map[string]EventType{},
		wake: make(chan struct{}, 1)}
	// A pod that comes from now on finds the subscriber; those that are there have their turn in Next.
	for f := range h.feeds {
		s.pending[f] = true
	}
	next := append(slices.Clone(subscribers), s)
	h.subscribers.Store(&next)
	return s, nil
}

// EndEvents ends all subscriptions, since their streams would keep a server from stopping.
func (m *Manager) EndEvents() {
	h := m.events
	h.mu.Lock()
	h.closed = true
	subscribers := *h.subscribers.Load()
	h.mu.Unlock()
	for _, s := range subscribers {
		s.end()
	}
}
