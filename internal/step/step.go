// SPDX-License-Identifier: Apache-2.0

// Package step runs ordered acquire/release pairs with a journal. A failed start, a stop, a removal and the
// recovery after kill -9 are all the same Plan.Down: release what was begun, in reverse order.
//
// The life of a step:
//
//	          journal.Begin            Acquire                    journal.End
//	untouched ------------> begun ---------------> acquired ... <------------- released
//	                          \_______ Release (idempotent, tolerates a half-done Acquire) _/
//
// Only "begun" is durable. That is enough: Release must cope with everything between nothing and all of
// what its Acquire does, so the journal only says which releases can be left out. For the same reason the steps of
// one Up are begun by one write, and those of one Down ended by one: a crash in between repeats a few releases.
package step

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Step is one thing to acquire and the way to give it back.
type Step struct {
	Name string
	// After names the steps that must be acquired before this one, and released after it.
	// Steps that do not depend on each other run side by side.
	After []string
	// Acquire takes hold of the thing. It is called at most once for each Plan.Up.
	Acquire func(context.Context) error
	// Release gives it back. It is idempotent, also after an Acquire that was never called, failed half-way
	// or was cut off by a crash, and after a reboot.
	Release func(context.Context) error
}

// Journal remembers which steps may hold something. Its methods are called by one goroutine at a time.
type Journal interface {
	// Begun lists the steps that may hold something.
	Begun() []string
	// Begin records that the steps are about to be acquired. It must survive kill -9 once it returns.
	Begin(steps ...string) error
	// End records that the steps hold nothing any more.
	End(steps ...string) error
}

// Plan is the list of steps of one object.
type Plan struct {
	// Object names it in errors, for example "sandbox 4f…".
	Object string
	Steps  []Step
	// Journal outlives the plan.
	Journal Journal
	// Timed, if set, is called before each acquire and release, which gets the context that it returns; the function is called after it.
	Timed func(ctx context.Context, step string, release bool) (context.Context, func(error))
	// Passing is called before each acquire and after each release, where a crash leaves things half done: for tests that
	// crash there. It may be nil.
	Passing func()

	mu      sync.Mutex // guards running and each call of Journal
	running map[string]time.Time
}

// Error tells in which step of which object something went wrong.
type Error struct {
	Object, Step, Verb string
	Err                error
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s %s: %v", e.Object, e.Verb, e.Step, e.Err) }

func (e *Error) Unwrap() error { return e.Err }

// Up acquires all steps that are not begun yet, each as soon as those it waits for are held. When one
// fails, the others are cancelled and everything that was begun is released again; an error of
// the roll-back is joined to the first one, and what could not be released stays in the journal.
func (p *Plan) Up(ctx context.Context) error { return p.UpTo(ctx, p.names()...) }

// UpTo is Up for the named steps only; what they wait for must be held already or be among them.
func (p *Plan) UpTo(ctx context.Context, names ...string) error {
	begun := p.begun()
	todo := p.pick(func(s Step) bool { return slices.Contains(names, s.Name) && !slices.Contains(begun, s.Name) })
	if len(todo) == 0 {
		return nil
	}
	if err := p.journal(func(j Journal) error { return j.Begin(stepNames(todo)...) }); err != nil {
		return &Error{p.Object, strings.Join(stepNames(todo), ", "), "journal", err}
	}
	touched, err := p.walk(ctx, todo, func(s Step) []string { return s.After }, p.acquire, true)
	if err == nil {
		return nil
	}
	// The roll-back runs even where the caller's context is what ended the work.
	if derr := p.releaseAll(context.WithoutCancel(ctx), todo, touched); derr != nil {
		return errors.Join(err, fmt.Errorf("roll back: %w", derr))
	}
	return err
}

// Down releases all that was begun, in reverse order. A release that fails keeps its step, and those it depends
// on, in the journal for the next Down; independent ones are released all the same.
func (p *Plan) Down(ctx context.Context) error { return p.DownTo(ctx, p.names()...) }

// DownTo is Down for the named steps only.
func (p *Plan) DownTo(ctx context.Context, names ...string) error {
	begun := p.begun()
	todo := p.pick(func(s Step) bool { return slices.Contains(names, s.Name) && slices.Contains(begun, s.Name) })
	return p.releaseAll(ctx, todo, todo)
}

// releaseAll takes steps out of the journal once those of them that were touched are released.
func (p *Plan) releaseAll(ctx context.Context, begun, touched []Step) error {
	if len(begun) == 0 {
		return nil
	}
	var mu sync.Mutex
	ended := stepNames(begun)
	ended = slices.DeleteFunc(ended, func(name string) bool { return slices.Contains(stepNames(touched), name) })
	_, err := p.walk(ctx, touched, p.dependants, func(ctx context.Context, s Step) error {
		if err := p.release(ctx, s); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		ended = append(ended, s.Name)
		return nil
	}, false)
	if len(ended) == 0 {
		return err
	}
	if jerr := p.journal(func(j Journal) error { return j.End(ended...) }); jerr != nil {
		return errors.Join(err, &Error{p.Object, strings.Join(ended, ", "), "journal", jerr})
	}
	return err
}

// Held tells whether a step may hold something.
func (p *Plan) Held(name string) bool { return slices.Contains(p.begun(), name) }

// Stage says what the plan is doing now and for how long, for errors about operations that take too long;
// it is empty when nothing runs.
func (p *Plan) Stage() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for name, since := range p.running {
		all = append(all, fmt.Sprintf("%s for %s", name, time.Since(since).Round(time.Millisecond)))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func (p *Plan) acquire(ctx context.Context, s Step) error {
	p.passing()
	err := p.timed(ctx, s.Name, false, s.Acquire)
	if err != nil {
		return &Error{p.Object, s.Name, "set up", err}
	}
	return nil
}

func (p *Plan) timed(ctx context.Context, step string, release bool, do func(context.Context) error) error {
	if p.Timed == nil {
		return do(ctx)
	}
	ctx, done := p.Timed(ctx, step, release)
	err := do(ctx)
	done(err)
	return err
}

func (p *Plan) release(ctx context.Context, s Step) error {
	err := p.timed(ctx, s.Name, true, s.Release)
	if err != nil {
		return &Error{p.Object, s.Name, "release", err}
	}
	p.passing()
	return nil
}

func (p *Plan) passing() {
	if p.Passing != nil {
		p.Passing()
	}
}

// walk runs do for each step once all of those named by before(step) that are part of the walk are done.
// A step whose forerunner failed is left out. With stop, the first failure cancels the others. It returns the steps that do was
// called for.
func (p *Plan) walk(ctx context.Context, steps []Step, before func(Step) []string, do func(context.Context, Step) error, stop bool) ([]Step, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(map[string]chan struct{}, len(steps))
	for _, s := range steps {
		done[s.Name] = make(chan struct{})
	}
	errs := make([]error, len(steps))
	failed := make(map[string]*error, len(steps))
	for i, s := range steps {
		failed[s.Name] = &errs[i]
	}
	var wg sync.WaitGroup
	for i, s := range steps {
		wg.Go(func() {
			defer close(done[s.Name])
			for _, name := range before(s) {
				if ch, ok := done[name]; ok {
					<-ch
					if *failed[name] != nil {
						errs[i] = errSkipped
						return
					}
				}
			}
			if stop && ctx.Err() != nil {
				errs[i] = errSkipped
				return
			}
			p.note(s.Name, true)
			defer p.note(s.Name, false)
			if errs[i] = do(ctx, s); errs[i] != nil && stop {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	var touched []Step
	for i, s := range steps {
		if !errors.Is(errs[i], errSkipped) {
			touched = append(touched, s)
		}
	}
	return touched, firstCause(ctx, errs, stop)
}

var errSkipped = errors.New("skipped")

// firstCause joins the real errors of a walk. Where the first failure cancelled the others, theirs say
// only "canceled": the first one alone is the cause.
func firstCause(ctx context.Context, errs []error, stopped bool) error {
	var real []error
	for _, err := range errs {
		if err != nil && !errors.Is(err, errSkipped) {
			real = append(real, err)
		}
	}
	if len(real) > 0 && stopped {
		var first *Error
		if cause := context.Cause(ctx); errors.As(cause, &first) {
			return first
		}
	}
	if len(real) == 0 && slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		return context.Cause(ctx)
	}
	return errors.Join(real...)
}

func (p *Plan) note(name string, starts bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		p.running = map[string]time.Time{}
	}
	if starts {
		p.running[name] = time.Now()
	} else {
		delete(p.running, name)
	}
}

// journal serialises the calls of the journal: a write of a small file, never a wait for another party.
func (p *Plan) journal(f func(Journal) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return f(p.Journal)
}

func (p *Plan) begun() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.Journal.Begun()
}

func (p *Plan) dependants(s Step) []string {
	var all []string
	for _, other := range p.Steps {
		if slices.Contains(other.After, s.Name) {
			all = append(all, other.Name)
		}
	}
	return all
}

func (p *Plan) pick(want func(Step) bool) []Step {
	var some []Step
	for _, s := range p.Steps {
		if want(s) {
			some = append(some, s)
		}
	}
	return some
}

func (p *Plan) names() []string { return stepNames(p.Steps) }

func stepNames(steps []Step) []string {
	names := make([]string, len(steps))
	for i, s := range steps {
		names[i] = s.Name
	}
	return names
}
