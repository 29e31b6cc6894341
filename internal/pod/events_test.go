// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// memory is a manager whose objects are changed in memory only: facts go the way to the subscribers that all facts go.
func memory() *Manager {
	return New(Config{CgroupDriver: "cgroupfs"}, Parts{}, slog.New(slog.DiscardHandler))
}

func memorySandbox(m *Manager, name string) *Sandbox {
	return m.newSandbox(sandboxRecord{ID: name, CreatedAt: 1}, &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name}})
}

func (s *Sandbox) set(f func(*sandboxRecord)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.rec)
	s.publish()
}

func (s *Sandbox) drop() {
	s.mu.Lock()
	s.removed = true
	s.publish()
	s.mu.Unlock()
	s.m.events.forget(s.feed)
}

func memoryContainer(t testing.TB, s *Sandbox, id string) *Container {
	c, err := s.newContainer(containerRecord{ID: id, SandboxID: s.ID}, &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: id}})
	if err != nil {
		t.Error(err)
	}
	return c
}

func (c *Container) set(f func(*containerRecord)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.rec)
	c.publish()
}

func (c *Container) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removed = true
	c.publish()
}

// life takes a container through all its transitions.
func (c *Container) life() {
	c.set(func(r *containerRecord) { r.CreatedAt = now() })
	c.set(func(r *containerRecord) { r.StartedAt = now() })
	c.set(func(r *containerRecord) { r.PID = 7 }) // no transition
	c.set(func(r *containerRecord) { r.FinishedAt = now() })
	c.drop()
}

// witness checks what one subscriber is told.
type witness struct {
	at     map[string]int64                // pod → time of its last event
	phases map[string]map[string]EventType // pod → object → last event
	every  bool                            // no event may be left out
	events int
}

func newWitness(every bool) *witness {
	return &witness{at: map[string]int64{}, phases: map[string]map[string]EventType{}, every: every}
}

func (w *witness) see(e Event) error {
	w.events++
	pod := e.Sandbox.ID
	if e.At <= w.at[pod] {
		return fmt.Errorf("%s %s: time goes from %d to %d", e.ID, e.Type, w.at[pod], e.At)
	}
	w.at[pod] = e.At
	if w.phases[pod] == nil {
		w.phases[pod] = map[string]EventType{}
	}
	last := w.phases[pod][e.ID]
	if e.Type <= last || w.every && e.Type != last+1 {
		return fmt.Errorf("%s: %s after %s", e.ID, e.Type, last)
	}
	w.phases[pod][e.ID] = e.Type
	if e.ID == pod && e.Type == EventDeleted {
		delete(w.phases, pod)
		delete(w.at, pod)
		if len(e.Containers) != 0 {
			return fmt.Errorf("%s is deleted with containers", pod)
		}
		return nil
	}
	return w.instant(e)
}

// instant checks that an event and the statuses with it are of one instant.
func (w *witness) instant(e Event) error {
	found := e.ID == e.Sandbox.ID
	for _, c := range e.Containers {
		switch phase := containerPhase(c); {
		case c.ID == e.ID && (phase != e.Type || phase.String() != map[runtimeapi.ContainerState]string{0: "created", 1: "started", 2: "stopped"}[c.State]):
			return fmt.Errorf("%s %s: its status says %s, %s", e.ID, e.Type, phase, c.State)
		case c.ID == e.ID:
			found = true
		case w.every && w.phases[e.Sandbox.ID][c.ID] != phase:
			return fmt.Errorf("%s %s: %s is %s, though its last event was %s", e.ID, e.Type, c.ID, phase, w.phases[e.Sandbox.ID][c.ID])
		}
	}
	if e.Type == EventDeleted {
		delete(w.phases[e.Sandbox.ID], e.ID)
	}
	if found == (e.Type == EventDeleted) {
		return fmt.Errorf("%s %s: listed: %v", e.ID, e.Type, found)
	}
	return nil
}

// underRace: the race detector makes all twenty times slower; a hundred thousand transitions are enough for it.
var underRace bool

// TestAMillionTransitions drives pods from many goroutines, with a subscriber that keeps up, one that is slow and one that never reads.
func TestAMillionTransitions(t *testing.T) {
	pods, rounds := 50, 5000 // 4 transitions each: a million
	if underRace {
		rounds = 500
	}
	m := memory()
	subscribe := func(limit int) *Subscription {
		s, err := m.Subscribe()
		if err != nil {
			t.Fatal(err)
		}
		s.limit = limit
		t.Cleanup(s.Close)
		return s
	}
	keen, slow, deaf := subscribe(maxQueued), subscribe(64), subscribe(64)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	want := int64(pods*(rounds*4+4)) + 2 // and the last pod's
	var seen, made atomic.Int64
	var readers, writers sync.WaitGroup
	readers.Go(func() { // every event, in order
		w := newWitness(true)
		for seen.Load() < want {
			e, err := keen.Next(ctx)
			if err == nil {
				err = w.see(e)
			}
			if err != nil {
				t.Errorf("after %d events: %v", w.events, err)
				cancel()
				return
			}
			seen.Add(1)
		}
		if len(w.phases) != 1 || w.phases["last"] == nil || keen.Lost() != 0 {
			t.Errorf("%d pods are left, %d events lost", len(w.phases), keen.Lost())
		}
	})
	slowly := newWitness(false)
	readers.Go(func() {
		for n := 0; ; n++ {
			e, err := slow.Next(ctx)
			if err != nil {
				return
			}
			if err := slowly.see(e); err != nil {
				t.Errorf("slow, after %d events: %v", n, err)
				cancel()
				return
			}
			if n%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	for p := range pods {
		writers.Go(func() {
			s := memorySandbox(m, fmt.Sprintf("pod%d", p))
			s.set(func(r *sandboxRecord) { r.ReadyAt = now() })
			for i := range rounds {
				// The keen one keeps up: no more is made than it can have queued.
				for made.Load()-seen.Load() > maxQueued-10*int64(pods) && ctx.Err() == nil {
					time.Sleep(50 * time.Microsecond)
				}
				made.Add(4)
				memoryContainer(t, s, fmt.Sprintf("pod%d-%d", p, i)).life()
			}
			s.set(func(r *sandboxRecord) { r.StoppedAt = now() })
			s.drop()
		})
	}
	writers.Wait()
	last := memorySandbox(m, "last")
	last.set(func(r *sandboxRecord) { r.ReadyAt = now() })
	for ctx.Err() == nil && (seen.Load() < want || !slowHas(slow)) {
		time.Sleep(time.Millisecond)
	}
	slow.Close()
	readers.Wait()
	for pod := range slowly.phases {
		if pod != "last" {
			t.Errorf("the slow one still believes in %s", pod)
		}
	}
	if slow.Lost() == 0 || deaf.Lost() == 0 || len(deaf.queue) > deaf.limit || len(deaf.pending) > 1 {
		t.Errorf("lost: slow %d, deaf %d; deaf has %d events and %d pods", slow.Lost(), deaf.Lost(), len(deaf.queue), len(deaf.pending))
	}
	t.Logf("%d events, slow saw %d and lost %d", seen.Load(), slowly.events, slow.Lost())
}

// slowHas tells whether a subscriber has read all that it could.
func slowHas(s *Subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) == 0 && len(s.pending) == 0
}

func next(t *testing.T, s *Subscription) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	e, err := s.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return e.ID + " " + e.Type.String()
}

func quiet(t *testing.T, s *Subscription) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if e, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %s %s, %v", e.ID, e.Type, err)
	}
}

func TestANewSubscriberIsToldWhatThereIs(t *testing.T) {
	m := memory()
	s := memorySandbox(m, "p")
	hidden := memorySandbox(m, "hidden")
	s.set(func(r *sandboxRecord) { r.ReadyAt = now() })
	for i, upTo := range []string{"created", "started", "stopped", "gone"} {
		c := memoryContainer(t, s, fmt.Sprint(i)+upTo)
		for _, step := range []func(*containerRecord){func(r *containerRecord) { r.CreatedAt = int64(i + 1) },
			func(r *containerRecord) { r.StartedAt = now() }, func(r *containerRecord) { r.FinishedAt = now() }}[:min(i+1, 3)] {
			c.set(step)
		}
		if upTo == "gone" {
			c.drop()
		}
	}
	sub, err := m.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for _, want := range []string{"p started", "0created created", "1started started", "2stopped stopped"} {
		if got := next(t, sub); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	quiet(t, sub)
	hidden.set(func(r *sandboxRecord) { r.ReadyAt = now() })
	for _, want := range []string{"hidden created", "hidden started"} {
		if got := next(t, sub); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestWhoWasTooSlowIsToldWhatIsTrueNow(t *testing.T) {
	m := memory()
	sub, err := m.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	sub.limit = 4
	s := memorySandbox(m, "p")
	s.set(func(r *sandboxRecord) { r.ReadyAt = now() })
	a, b := memoryContainer(t, s, "a"), memoryContainer(t, s, "b")
	a.set(func(r *containerRecord) { r.CreatedAt = 1 })
	b.set(func(r *containerRecord) { r.CreatedAt = 2 })
	for range 4 {
		next(t, sub)
	}
	a.set(func(r *containerRecord) { r.StartedAt = now() })
	b.drop()
	for i := range 10 { // these come and go unseen
		memoryContainer(t, s, fmt.Sprint(i)).life()
	}
	a.set(func(r *containerRecord) { r.FinishedAt = now() })
	for _, want := range []string{"a stopped", "b deleted"} {
		if got := next(t, sub); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	quiet(t, sub)
	if sub.Lost() == 0 {
		t.Error("nothing is counted as lost")
	}
	a.drop() // and from now on one by one again
	if got := next(t, sub); got != "a deleted" {
		t.Errorf("got %q", got)
	}
	for i := range 10 {
		memoryContainer(t, s, "again"+fmt.Sprint(i)).life()
	}
	s.set(func(r *sandboxRecord) { r.StoppedAt = now() })
	s.drop()
	if got := next(t, sub); got != "p deleted" {
		t.Errorf("got %q", got)
	}
	if len(sub.told) != 0 || len(sub.pending) != 0 {
		t.Errorf("something is kept of a pod that is gone: %v, %v", sub.told, sub.pending)
	}
}

func TestSubscribersAreBoundedAndEnd(t *testing.T) {
	m := memory()
	var all []*Subscription
	for {
		s, err := m.Subscribe()
		if errors.Is(err, ErrSubscribers) {
			break
		} else if err != nil || len(all) > maxSubscribers {
			t.Fatal(len(all), err)
		}
		all = append(all, s)
	}
	all[0].Close()
	all[0].Close()
	if _, err := m.Subscribe(); err != nil {
		t.Errorf("no place after one has left: %v", err)
	}
	waiting := make(chan error)
	go func() { _, err := all[1].Next(context.Background()); waiting <- err }()
	m.EndEvents()
	if err := <-waiting; !errors.Is(err, ErrEventsEnded) {
		t.Errorf("got %v", err)
	}
	if _, err := m.Subscribe(); !errors.Is(err, ErrEventsEnded) {
		t.Errorf("got %v", err)
	}
}

func TestAPodsWholeLifeIsTold(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	sub, err := n.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	id, err := n.RunSandbox(t.Context(), podConfig(), "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.CreateContainer(t.Context(), id, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := n.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveSandbox(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	var got []string
	for !slices.Contains(got, id+" deleted") {
		got = append(got, next(t, sub))
	}
	var want []string
	for _, s := range strings.Fields("p.created p.started c.created c.started c.stopped p.stopped c.deleted p.deleted") {
		s = strings.NewReplacer("p.", id+" ", "c.", c+" ").Replace(s)
		want = append(want, s)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	quiet(t, sub)
}
