// SPDX-License-Identifier: Apache-2.0

package step

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is what a plan's steps hold outside of the process: it survives a "crash".
type world struct {
	mu    sync.Mutex
	held  map[string]bool
	begun []string
	log   []string
	life  int // goes up with each crash: what a dead process still wants to do no longer happens
}

// process is one life of the daemon: its view of the world, and the journal's.
type process struct {
	*world
	life int
}

func (w *world) start() process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return process{w, w.life}
}

// enter locks the world, or never returns where the process is dead.
func (p process) enter() {
	p.mu.Lock()
	if p.world.life != p.life {
		p.mu.Unlock()
		select {}
	}
}

func (p process) Begun() []string {
	p.enter()
	defer p.mu.Unlock()
	return slices.Clone(p.begun)
}

func (p process) Begin(steps ...string) error {
	p.enter()
	defer p.mu.Unlock()
	for _, s := range steps {
		if !slices.Contains(p.begun, s) {
			p.world.begun = append(p.world.begun, s)
		}
	}
	return nil
}

func (p process) End(steps ...string) error {
	p.enter()
	defer p.mu.Unlock()
	p.world.begun = slices.DeleteFunc(p.world.begun, func(s string) bool { return slices.Contains(steps, s) })
	return nil
}

func (p process) do(what, name string, hold bool) {
	p.enter()
	defer p.mu.Unlock()
	p.world.log = append(p.world.log, what+" "+name)
	p.held[name] = hold
}

// die ends the process in the middle of a step.
func (p process) die(crashed chan<- crash) {
	p.enter()
	p.world.life++
	p.mu.Unlock()
	crashed <- crash{}
	select {}
}

var errFault = errors.New("fault")

type crash struct{}

// fault says what happens at one step.
type fault struct{ step, kind string }

var kinds = []string{"error before", "error after", "crash before", "crash after", "caller gone", "release fails once"}

// plan builds namespaces → {network, cgroup} → shim with the fault in it, in a new process. After a crash
// nothing of that process returns; the test starts anew from the world.
func (w *world) plan(f fault, crashed chan<- crash, cancel func()) *Plan {
	failedOnce, w2 := false, w.start()
	mk := func(name string, after ...string) Step {
		at := func(kind string) bool { return f.step == name && f.kind == kind }
		return Step{Name: name, After: after,
			Acquire: func(ctx context.Context) error {
				if at("error before") {
					return errFault
				}
				if at("crash before") {
					w2.die(crashed)
				}
				if at("caller gone") {
					cancel()
					<-ctx.Done()
					w2.do("half", name, true)
					return ctx.Err()
				}
				w2.do("acquire", name, true)
				if at("crash after") {
					w2.die(crashed)
				}
				if at("error after") || at("release fails once") {
					return errFault
				}
				return nil
			},
			Release: func(context.Context) error {
				if at("release fails once") && !failedOnce {
					failedOnce = true
					return errFault
				}
				w2.do("release", name, false)
				return nil
			}}
	}
	return &Plan{Object: "sandbox x", Journal: w2, Steps: []Step{
		mk("namespaces"), mk("network", "namespaces"), mk("cgroup", "namespaces"), mk("shim", "network", "cgroup")}}
}

func (w *world) mustHoldNothing(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, held := range w.held {
		if held {
			t.Errorf("%s is leaked; log: %v", name, w.log)
		}
	}
	if len(w.begun) > 0 {
		t.Errorf("journal still has %v", w.begun)
	}
}

// The matrix of the architecture page: every step × every fault → nothing leaks, and a retry succeeds.
func TestEveryFaultAtEveryStepLeaksNothing(t *testing.T) {
	for _, step := range []string{"namespaces", "network", "cgroup", "shim"} {
		for _, kind := range kinds {
			t.Run(step+"/"+kind, func(t *testing.T) {
				w := &world{held: map[string]bool{}}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				crashed := make(chan crash, 1)
				p := w.plan(fault{step, kind}, crashed, cancel)
				result := make(chan error, 1)
				go func() { result <- p.Up(ctx) }()
				select {
				case <-crashed:
					// Another process starts: it knows the world and the journal only.
					p = w.plan(fault{}, nil, nil)
					if err := p.Down(t.Context()); err != nil {
						t.Fatal(err)
					}
				case err := <-result:
					if err == nil {
						t.Fatal("the fault went unnoticed")
					}
					if kind != "caller gone" && !strings.Contains(err.Error(), "sandbox x: set up "+step+": fault") {
						t.Errorf("error %q does not name the object and the step", err)
					}
					if kind == "release fails once" {
						if !p.Held(step) {
							t.Error("a failed release was forgotten")
						}
						if err := p.Down(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
				}
				w.mustHoldNothing(t)
				p = w.plan(fault{}, nil, nil)
				if err := p.Up(t.Context()); err != nil {
					t.Fatal("retry:", err)
				}
				if len(w.begun) != 4 {
					t.Errorf("after the retry the journal has %v", w.begun)
				}
				if err := errors.Join(p.Down(t.Context()), p.Down(t.Context())); err != nil {
					t.Fatal(err)
				}
				w.mustHoldNothing(t)
			})
		}
	}
}

func TestStepsRunInTheOrderOfTheirNeeds(t *testing.T) {
	w := &world{held: map[string]bool{}}
	p := w.plan(fault{}, nil, nil)
	if err := errors.Join(p.Up(t.Context()), p.Down(t.Context())); err != nil {
		t.Fatal(err)
	}
	at := func(what string) int { return slices.Index(w.log, what) }
	for _, c := range [][2]string{
		{"acquire namespaces", "acquire network"}, {"acquire network", "acquire shim"}, {"acquire cgroup", "acquire shim"},
		{"release shim", "release network"}, {"release network", "release namespaces"}, {"release cgroup", "release namespaces"},
	} {
		if a, b := at(c[0]), at(c[1]); a < 0 || b < 0 || a > b {
			t.Errorf("%q at %d, %q at %d in %v", c[0], a, c[1], b, w.log)
		}
	}
}

func TestIndependentStepsRunSideBySide(t *testing.T) {
	meet := make(chan struct{})
	both := func(ctx context.Context) error {
		select {
		case meet <- struct{}{}:
		case <-meet:
		case <-ctx.Done():
			return ctx.Err()
		}
		return nil
	}
	none := func(context.Context) error { return nil }
	p := &Plan{Object: "o", Journal: (&world{held: map[string]bool{}}).start(),
		Steps: []Step{{"a", nil, both, none}, {"b", nil, both, none}}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Up(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestAReleaseThatFailsHoldsBackOnlyWhatItStandsOn(t *testing.T) {
	w := &world{held: map[string]bool{}}
	p := w.plan(fault{}, nil, nil)
	if err := p.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Steps[1].Release = func(context.Context) error { return errFault } // network
	err := p.Down(t.Context())
	if err == nil || err.Error() != "sandbox x: release network: fault" {
		t.Fatalf("got %v", err)
	}
	if got := fmt.Sprint(w.begun); got != "[namespaces network]" {
		t.Errorf("journal has %s, want the network and the namespaces it stands on", got)
	}
}

// Each write of the journal costs; and what was never touched needs no release.
func TestOneWriteBeginsAllAndOneEndsAll(t *testing.T) {
	w := &world{held: map[string]bool{}}
	j := &counted{process: w.start()}
	p := w.plan(fault{}, nil, nil)
	p.Journal = j
	passed := 0
	p.Passing = func() { w.mu.Lock(); defer w.mu.Unlock(); passed++ }
	if err := errors.Join(p.Up(t.Context()), p.Down(t.Context())); err != nil {
		t.Fatal(err)
	}
	if j.writes != 2 || passed != 8 {
		t.Errorf("%d writes and %d instants to crash at, want 2 and 8", j.writes, passed)
	}
	w.log = nil
	p = w.plan(fault{"network", "error before"}, nil, nil)
	if err := p.Up(t.Context()); err == nil {
		t.Fatal("the fault went unnoticed")
	}
	if slices.Contains(w.log, "release shim") {
		t.Errorf("the shim, which was never begun, is released: %v", w.log)
	}
	w.mustHoldNothing(t)
}

type counted struct {
	process
	writes int
}

func (c *counted) Begin(steps ...string) error { c.writes++; return c.process.Begin(steps...) }
func (c *counted) End(steps ...string) error   { c.writes++; return c.process.End(steps...) }

func TestStageNamesWhatHangs(t *testing.T) {
	enter, leave := make(chan struct{}), make(chan struct{})
	p := &Plan{Object: "o", Journal: (&world{held: map[string]bool{}}).start(), Steps: []Step{{Name: "network",
		Acquire: func(context.Context) error { close(enter); <-leave; return nil },
		Release: func(context.Context) error { return nil }}}}
	done := make(chan error)
	go func() { done <- p.Up(t.Context()) }()
	<-enter
	if got := p.Stage(); !strings.HasPrefix(got, "network for ") {
		t.Errorf("stage %q", got)
	}
	close(leave)
	if err := <-done; err != nil || p.Stage() != "" {
		t.Errorf("%v, stage %q", err, p.Stage())
	}
}
