// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// ops lets one state-changing operation at a time work on an object. It is the object's operation lock, but one
// that can be waited for with a context, says what holds it and for how long, and lets a repeated
// request join the one in flight instead of failing or running twice. Order: sandbox before container.
type ops struct {
	object string
	// stage says what the object's plan is doing, for errors.
	stage func() string
	work  *inFlight
	log   *slog.Logger

	mu  sync.Mutex // guards cur and what it is doing; never held while an operation runs
	cur *op
}

type op struct {
	kind  string
	since time.Time
	done  chan struct{}
	err   error // valid once done is closed

	// What is done outside of the plan's steps and may hang. Guarded by ops.mu.
	doing      string
	doingSince time.Time
}

// answerTime is how long before a request's deadline its caller is told what it waits for, or a twentieth of its patience where that is less.
// An answer at the deadline itself comes too late: the caller has made one of its own by then, which tells nothing, and it is that which a pod's
// events show.
const answerTime = time.Second

// do runs fn as the operation kind, or joins the one of that kind in flight and returns its result; another
// kind in flight is waited for first. The end of ctx, or its deadline's being near, ends only the waiting: fn gets a context of its own that
// keeps ctx's values. The error is then ErrInFlight, with the stage the work hangs in.
func (o *ops) do(ctx context.Context, kind string, fn func(context.Context) error) error {
	var late <-chan time.Time
	if deadline, ok := ctx.Deadline(); ok {
		patience := time.Until(deadline)
		timer := time.NewTimer(patience - min(answerTime, patience/20))
		defer timer.Stop()
		late = timer.C
	}
	for {
		cur, mine := o.enter(kind)
		if mine && !o.work.begin() {
			o.leave(cur, fmt.Errorf("%s: %s: the daemon is shutting down: %w", o.object, kind, ErrUnavailable))
		} else if mine {
			go o.run(context.WithoutCancel(ctx), cur, fn)
		}
		select {
		case <-cur.done:
			if cur.kind == kind {
				return cur.err
			}
		case <-ctx.Done():
			return o.impatient(context.Cause(ctx), cur, kind)
		case <-late:
			return o.impatient(context.DeadlineExceeded, cur, kind)
		}
	}
}

// doToEnd is do for work that nobody may be told of before it has ended: ctx bounds the wait for other operations, and fn, which is given it, has to give up by
// itself.
func (o *ops) doToEnd(ctx context.Context, kind string, fn func(context.Context) error) error {
	var begun atomic.Bool
	wait, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	defer context.AfterFunc(ctx, func() {
		if !begun.Load() { // if it begins just now, it sees that ctx has ended, too
			giveUp(context.Cause(ctx))
		}
	})()
	return o.do(wait, kind, func(context.Context) error {
		begun.Store(true)
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("%s: %s: %w", o.object, kind, err)
		}
		return fn(ctx)
	})
}

// hold keeps all operations waiting until done is closed. It is for recovery, before the first request is served.
func (o *ops) hold(kind string, done <-chan struct{}) {
	cur, mine := o.enter(kind)
	if !mine {
		return
	}
	go func() {
		<-done
		o.leave(cur, nil)
	}()
}

// enter makes the caller's operation the current one, if none is.
func (o *ops) enter(kind string) (cur *op, mine bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cur == nil {
		o.cur = &op{kind: kind, since: time.Now(), done: make(chan struct{})}
		mine = true
	}
	return o.cur, mine
}

func (o *ops) run(ctx context.Context, cur *op, fn func(context.Context) error) {
	defer o.work.finish()
	var err error
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %s: panic: %v", o.object, cur.kind, p)
			o.log.ErrorContext(ctx, "operation panicked", "kind", cur.kind, "panic", p, "stack", string(debug.Stack()))
		}
		o.leave(cur, err)
	}()
	err = fn(ctx)
}

func (o *ops) leave(cur *op, err error) {
	cur.err = err
	o.mu.Lock()
	o.cur = nil
	o.mu.Unlock()
	close(cur.done)
}

// doing notes what the operation in flight does outside of the plan's steps, until it is told otherwise or ends; "" is nothing that could hang.
func (o *ops) doing(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cur != nil {
		o.cur.doing, o.cur.doingSince = what, time.Now()
	}
}

// stageOf is what cur is doing, and for how long; "" between two stages.
func (o *ops) stageOf(cur *op) string {
	if stage := o.stage(); stage != "" {
		return stage
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if cur.doing == "" {
		return ""
	}
	return fmt.Sprintf("%s for %s", cur.doing, time.Since(cur.doingSince).Round(time.Millisecond))
}

func (o *ops) impatient(why error, cur *op, kind string) error {
	stage := o.stageOf(cur)
	if stage != "" {
		stage = ", in stage " + stage
	}
	what := cur.kind
	if cur.kind != kind {
		what = kind + " waits for " + cur.kind + ", which"
	}
	return fmt.Errorf("%s: %s has been running for %s%s: %w (%w)", o.object, what,
		time.Since(cur.since).Round(time.Millisecond), stage, ErrInFlight, why)
}

// inFlight counts operations, so that a shutdown lets none begin and can wait for those that have.
type inFlight struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{} // made by close, closed when n reaches 0
}

func (f *inFlight) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.n++
	return true
}

func (f *inFlight) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 && f.closed {
		close(f.idle)
	}
}

// close refuses new operations and returns a channel that is closed once none is left.
func (f *inFlight) close() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return f.idle
	}
	f.closed, f.idle = true, make(chan struct{})
	if f.n == 0 {
		close(f.idle)
	}
	return f.idle
}
