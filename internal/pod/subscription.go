// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"slices"
	"sync"
)

// maxQueued bounds the events that wait for one subscriber.
const maxQueued = 4096

// queued is an event with the pod that it is of.
type queued struct {
	Event
	feed *feed
}

// Subscription is one subscriber's view. Whoever publishes never waits for it: when its queue is full, it is emptied, and the pods that it told
// of are compared anew with what the subscriber was told. So a slow subscriber learns the last state of everything, and no event comes twice
// or out of order; what came and went meanwhile it does not see, and Lost counts that.
type Subscription struct {
	hub   *hub
	limit int
	wake  chan struct{} // holds one token when there is something new

	mu    sync.Mutex // guards all below
	queue []queued
	// pending are pods to be compared. None of them has an event in the queue. It holds no pod that is gone and was never told of, so
	// a subscriber that never reads does not gather all pods of a node's life.
	pending map[*feed]bool
	// told is the last event of each object that was handed out.
	told   map[*feed]map[string]EventType
	lost   uint64
	closed bool

	// batch is of the one who calls Next.
	batch []Event
}

// offer takes an event or notes that the pod must be compared. It never waits. Preconditions: the feed's mutex is held.
func (s *Subscription) offer(e queued) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return
	case s.pending[e.feed]:
		if s.lost > 0 { // what comes before the first look at a pod is no loss
			s.lost++
		}
		s.compareLater(e.feed)
	case len(s.queue) < s.limit:
		s.queue = append(s.queue, e)
	default:
		s.lost += uint64(len(s.queue)) + 1
		for _, old := range s.queue {
			s.compareLater(old.feed)
		}
		s.compareLater(e.feed)
		s.queue = nil
	}
	s.nudge()
}

// compareLater puts a pod among the pending, unless it is gone and the subscriber never heard of it. Preconditions: s.mu is held.
func (s *Subscription) compareLater(f *feed) {
	if f.gone.Load() && s.told[f] == nil {
		delete(s.pending, f)
		return
	}
	s.pending[f] = true
}

func (s *Subscription) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next waits for the next event. One goroutine may call it. Errors: the context's, ErrEventsEnded.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		if len(s.batch) > 0 {
			e := s.batch[0]
			s.batch = s.batch[1:]
			return e, nil
		}
		e, f, ended := s.take()
		switch {
		case ended:
			return Event{}, ErrEventsEnded
		case f != nil:
			s.batch = f.compare(s)
			continue
		case e.Type != 0:
			return e, nil
		}
		select {
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		case <-s.wake:
		}
	}
}

// take returns a pod to compare, or else the first of the queue, or neither.
func (s *Subscription) take() (e Event, f *feed, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Event{}, nil, true
	}
	for f := range s.pending {
		return Event{}, f, false
	}
	if len(s.queue) == 0 {
		s.queue = nil // what it held is of no use any more
		return Event{}, nil, false
	}
	first := s.queue[0]
	s.queue[0] = queued{}
	s.queue = s.queue[1:]
	s.note(first.feed, first.ID, first.Type)
	return first.Event, nil, false
}

// note remembers what the subscriber is told. Preconditions: s.mu is held.
func (s *Subscription) note(f *feed, id string, t EventType) {
	switch {
	case t == EventDeleted && id == f.id:
		delete(s.told, f)
	case t == EventDeleted:
		delete(s.told[f], id)
	default:
		if s.told[f] == nil {
			s.told[f] = map[string]EventType{}
		}
		s.told[f][id] = t
	}
}

// compare makes the events that lead from what the subscriber was told of a pod to what is true now.
func (f *feed) compare(s *Subscription) []Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, f)
	var out []Event
	containers := f.list()
	add := func(id string, t EventType) {
		out = append(out, Event{Type: t, ID: id, At: f.tick(), Sandbox: f.sandbox, Containers: containers})
		s.note(f, id, t)
	}
	told := s.told[f]
	gone := f.gone.Load()
	if phase := sandboxPhase(f.sandbox); !gone && phase > told[f.id] {
		add(f.id, phase)
	}
	for _, c := range containers {
		if phase := containerPhase(c); phase > told[c.ID] {
			add(c.ID, phase)
		}
	}
	var deleted []string
	for id := range told {
		if id != f.id && f.containers[id] == nil {
			deleted = append(deleted, id)
		}
	}
	slices.Sort(deleted)
	for _, id := range deleted {
		add(id, EventDeleted)
	}
	if gone && told != nil {
		add(f.id, EventDeleted)
	}
	return out
}

// Lost tells how many events the subscriber did not see one by one.
func (s *Subscription) Lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *Subscription) end() {
	s.mu.Lock()
	s.closed, s.queue, s.pending, s.told = true, nil, nil, nil
	s.mu.Unlock()
	s.nudge()
}

// Close ends the subscription. It is idempotent.
func (s *Subscription) Close() {
	h := s.hub
	h.mu.Lock()
	next := slices.DeleteFunc(slices.Clone(*h.subscribers.Load()), func(o *Subscription) bool { return o == s })
	h.subscribers.Store(&next)
	h.mu.Unlock()
	s.end()
}
