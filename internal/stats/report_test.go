// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/shimapi"
)

func reporting(t *testing.T, ask func(ctx context.Context, handler, id string) (shimapi.TaskUsage, error)) *Collector {
	t.Helper()
	c := New(Config{Ask: ask, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(c.Close)
	return c
}

func TestAWedgedSandboxKeepsNobodyWaiting(t *testing.T) {
	wedged := make(chan struct{})
	defer close(wedged)
	var asked, atOnce, most atomic.Int64
	c := reporting(t, func(ctx context.Context, handler, id string) (shimapi.TaskUsage, error) {
		asked.Add(1)
		now := atOnce.Add(1)
		defer atOnce.Add(-1)
		for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
		}
		if id == "wedged" {
			<-ctx.Done()
			return shimapi.TaskUsage{}, ctx.Err()
		}
		return shimapi.TaskUsage{CPU: 7, Memory: 8, Tasks: 9}, nil
	})
	questions := []Question{{"gvisor", "wedged"}}
	for i := range 30 {
		questions = append(questions, Question{"gvisor", fmt.Sprint(i)})
	}
	got := c.Reported(t.Context(), questions)
	if len(got) != 30 || got["3"].CPU.Value != 7 || got["3"].WorkingSet().Value != 8 || got["3"].Tasks.Value != 9 || got["3"].Available().Known {
		t.Errorf("got %d: %+v", len(got), got["3"])
	}
	if most.Load() > reportSlots {
		t.Errorf("%d questions side by side", most.Load())
	}
	// The question to the wedged one is under way still: it is not put again.
	before := asked.Load()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c.Reported(ctx, questions[:1]); asked.Load() != before {
		t.Error("asked a wedged sandbox twice at once")
	}
}

func TestWhatWasToldBeforeStands(t *testing.T) {
	answers := make(chan shimapi.TaskUsage, 1)
	c := reporting(t, func(context.Context, string, string) (shimapi.TaskUsage, error) {
		select {
		case u := <-answers:
			return u, nil
		default:
			return shimapi.TaskUsage{}, errors.New("no answer")
		}
	})
	q := []Question{{"gvisor", "a"}}
	age := func() { // as if time had passed
		c.reports.mu.Lock()
		defer c.reports.mu.Unlock()
		c.reports.known["a"].tried = time.Time{}
	}
	if got := c.Reported(t.Context(), q); len(got) != 0 {
		t.Errorf("nothing was told: %v", got)
	}
	c.Forget("a")
	answers <- shimapi.TaskUsage{CPU: 100, Memory: 50}
	first := c.Reported(t.Context(), q)["a"]
	if first.CPU.Value != 100 {
		t.Fatalf("got %+v", first)
	}
	age()
	if got := c.Reported(t.Context(), q)["a"]; got != first {
		t.Errorf("after a failure: %+v, not %+v", got, first)
	}
	// gVisor shares CPU time out anew each time: a counter does not go back.
	k := c.reports.known["a"]
	k.take(shimapi.TaskUsage{CPU: 90, Memory: 60, MemoryLimit: 100})
	if k.last.CPU.Value != 100 || k.last.Memory.Value != 60 || k.last.Available().Value != 40 {
		t.Errorf("less CPU time: %+v", k.last)
	}
	if c.Keep(nil); len(c.reports.known) != 0 {
		t.Error("kept")
	}
}
