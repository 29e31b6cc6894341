// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/berth-run/berth/internal/record"
)

// ledger keeps an object's durable facts, which are a record of type R: on disk first, then in memory, then visible. It is the journal of the
// object's plan too.
type ledger[R any, P factsOf[R]] struct {
	object fmt.Stringer
	path   string // of the record
	header record.Header
	log    *slog.Logger
	// publish makes the facts visible. It is called with mu held.
	publish func()

	mu      sync.Mutex // guards all below, and orders the writes of the record; never held for anything else that blocks
	rec     R
	removed bool
}

// factsOf are records that say which steps of the object's plan have begun.
type factsOf[R any] interface {
	*R
	begun() *[]string
}

// update changes the facts. When the disk refuses, nothing changes.
func (l *ledger[R, P]) update(f func(*R)) error { return l.change(f, false) }

// learn is update for what is true, or comes true, whether the disk takes it or not: exits, and all that ends something. A full disk
// must not keep anybody from freeing what fills it.
func (l *ledger[R, P]) learn(f func(*R)) {
	if err := l.change(f, true); err != nil && !errors.Is(err, errGone) {
		l.log.Error("fact is kept in memory only", "error", err)
	}
}

func (l *ledger[R, P]) change(f func(*R), anyway bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.removed {
		return fmt.Errorf("%s: %w", l.object, errGone)
	}
	next := l.rec
	steps := P(&next).begun()
	*steps = slices.Clone(*steps)
	f(&next)
	err := record.Write(l.path, l.header, next)
	if err != nil && !anyway {
		return err
	}
	l.rec = next
	l.publish()
	return err
}

func (l *ledger[R, P]) facts() R {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec
}

func (l *ledger[R, P]) isRemoved() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removed
}

// again makes the facts visible once more, for what is visible depends on something else, too.
func (l *ledger[R, P]) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.publish()
}

// strike removes the record, and what goes with it, for good: whoever still works on the object, as a checkpoint may, or learns of its shim's end, cannot write it again.
// When that fails, the object stays.
func (l *ledger[R, P]) strike(rest func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := record.Remove(l.path); err != nil {
		return err
	}
	if err := rest(); err != nil {
		return err
	}
	l.removed = true
	l.publish()
	return nil
}

// vanish ends the facts: nobody sees or changes them any more.
func (l *ledger[R, P]) vanish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = true
	l.publish()
}

// Begun implements step.Journal.
func (l *ledger[R, P]) Begun() []string {
	r := l.facts()
	return *P(&r).begun()
}

// Begin implements step.Journal.
func (l *ledger[R, P]) Begin(steps ...string) error {
	return l.update(func(r *R) {
		begun := P(r).begun()
		for _, s := range steps {
			if !slices.Contains(*begun, s) {
				*begun = append(*begun, s)
			}
		}
	})
}

// End implements step.Journal. It never fails: what it could not write down is released once more by the next life, if that comes first.
func (l *ledger[R, P]) End(steps ...string) error {
	l.learn(func(r *R) {
		begun := P(r).begun()
		*begun = slices.DeleteFunc(*begun, func(s string) bool { return slices.Contains(steps, s) })
	})
	return nil
}
