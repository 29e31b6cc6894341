// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup/usage"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// reportWait is how long an answer waits for runtimes; what they have told before is given for those that are slower.
	reportWait = 2 * time.Second
	// reportLimit bounds one question, which starts a process.
	reportLimit = 5 * time.Second
	// reportAge is how old an answer may become before a runtime is asked again, reportPause how long one is left alone that has not answered.
	reportAge, reportPause = time.Second, 10 * time.Second
	// reportSlots are the questions that are put side by side, reportSlowSlots those to runtimes that have not answered the last: they keep nobody waiting.
	reportSlots, reportSlowSlots = 8, 2
)

// Question names a container whose runtime is asked, since its cgroup tells nothing: all containers of its pod live in one sandbox.
type Question struct{ Handler, ID string }

// reports are what runtimes tell of containers in sandboxes.
type reports struct {
	ask        func(ctx context.Context, handler, id string) (shimapi.TaskUsage, error)
	log        *slog.Logger
	life       context.Context
	end        context.CancelFunc
	work       sync.WaitGroup
	quick, bad chan struct{} // slots

	mu     sync.Mutex // guards all below; never held while asking
	known  map[string]*report
	closed bool
}

type report struct {
	last   Usage
	rate   rate
	tried  time.Time
	failed bool
	asking chan struct{} // closed with the answer; nil: nobody asks
}

func newReports(ask func(ctx context.Context, handler, id string) (shimapi.TaskUsage, error), log *slog.Logger) *reports {
	r := &reports{ask: ask, log: log, known: map[string]*report{}, quick: make(chan struct{}, reportSlots), bad: make(chan struct{}, reportSlowSlots)}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// Reported asks runtimes what containers use, CPU time, memory and tasks, side by side and for two seconds at most. What was told before stands, with its
// time, for who does not answer in that; a container that nothing was ever told of is missing. CPU time never goes back: gVisor shares out its
// sandbox's among the containers, anew each time.
func (c *Collector) Reported(ctx context.Context, questions []Question) map[string]Usage {
	if len(questions) == 0 || c.cfg.Ask == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	r := c.reports
	var answers []<-chan struct{}
	for _, q := range questions {
		if asking := r.begin(q); asking != nil {
			answers = append(answers, asking)
		}
	}
	for _, answer := range answers {
		select {
		case <-answer:
		case <-ctx.Done():
		}
	}
	out := make(map[string]Usage, len(questions))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range questions {
		if k := r.known[q.ID]; k != nil && k.last.CPU.Known {
			out[q.ID] = k.last
		}
	}
	return out
}

// begin asks if it is time to. Nil: what is known will do.
func (r *reports) begin(q Question) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.known[q.ID]
	if k == nil {
		k = &report{}
		r.known[q.ID] = k
	}
	age := reportAge
	if k.failed {
		age = reportPause
	}
	switch {
	case k.asking != nil && k.failed:
		return nil // nobody waits for it
	case k.asking != nil:
		return k.asking
	case r.closed || time.Since(k.tried) < age:
		return nil
	}
	slots := r.quick
	if k.failed {
		slots = r.bad
	}
	k.asking = make(chan struct{})
	r.work.Go(func() { r.run(q, k, slots) })
	if k.failed {
		return nil
	}
	return k.asking
}

func (r *reports) run(q Question, k *report, slots chan struct{}) {
	var u shimapi.TaskUsage
	var err error
	select {
	case slots <- struct{}{}:
		ctx, cancel := context.WithTimeout(r.life, reportLimit)
		u, err = r.ask(ctx, q.Handler, q.ID)
		cancel()
		<-slots
	case <-r.life.Done():
		err = r.life.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(k.asking)
	k.asking, k.tried = nil, time.Now()
	if err != nil {
		if !k.failed && !r.closed && r.known[q.ID] == k { // else it has ended meanwhile
			r.log.Warn("the runtime does not tell what a container uses", "container", q.ID, "handler", q.Handler, "error", err)
		}
		k.failed = true
		return
	}
	k.failed = false
	k.take(u)
}

// take keeps an answer.
func (k *report) take(u shimapi.TaskUsage) {
	known := func(v uint64) usage.Counter { return usage.Counter{Value: v, Known: true} }
	cpu := max(u.CPU, k.last.CPU.Value)
	next := Usage{Usage: usage.Usage{CPUAt: k.tried, MemoryAt: k.tried, CPU: known(cpu), Memory: known(u.Memory), InactiveFile: known(u.InactiveFile)},
		NanoCores: k.rate.next(k.tried, cpu), Tasks: known(u.Tasks)}
	if u.MemoryLimit > 0 {
		next.MemoryLimit = known(u.MemoryLimit)
	}
	k.last = next
}

func (r *reports) keep(ids map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.known {
		if !ids[id] {
			delete(r.known, id)
		}
	}
}

func (r *reports) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, id)
}

func (r *reports) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.end()
	r.work.Wait()
}
