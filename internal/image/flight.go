// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distribution/reference"

	"github.com/berth-run/berth/internal/telemetry"
)

const (
	// abandonAfter is how long a pull goes on when nobody waits for it any more: a kubelet that lost patience, or was started
	// again, comes back. What is fetched by then is kept for longer, see resumeTime.
	abandonAfter = 10 * time.Minute
	// pullTime bounds a pull, stalls or not; its lease lasts longer.
	pullTime      = 12 * time.Hour
	progressEvery = 200 * time.Millisecond
)

var errAbandoned = errors.New("nobody waited for the pull any more")

// flights joins pulls of the same image with the same credentials.
type flights struct {
	mu  sync.Mutex // guards all and each flight's fields but progress
	all map[string]*flight
	wg  sync.WaitGroup
}

type flight struct {
	done     chan struct{}
	image    Image
	err      error
	waiting  int
	cancel   context.CancelCauseFunc
	timer    *time.Timer // runs while nobody waits
	progress progress
}

// progress is written by a pull and read by who waits.
type progress struct {
	stage            atomic.Pointer[string]
	bytes, total     atomic.Int64
	unpacked, layers atomic.Int64
	present          atomic.Int64 // layers that were there already
}

func (p *progress) at(stage string) { p.stage.Store(&stage) }

// expect says how much of a blob is still to come. What is here of it from an earlier pull is nobody's to wait for; what comes twice is.
func (p *progress) expect(t *tries, left int64) {
	due := t.came + left
	p.total.Add(due - t.due)
	t.due = due
}

// came says how much of a blob the network has brought.
func (p *progress) came(t *tries, n int64) {
	t.came += n
	p.bytes.Add(n)
}

func (p *progress) read() Progress {
	out := Progress{Bytes: p.bytes.Load(), Total: p.total.Load(), Unpacked: int(p.unpacked.Load()), Layers: int(p.layers.Load())}
	if s := p.stage.Load(); s != nil {
		out.Stage = *s
	}
	return out
}

// Pull fetches and unpacks an image, in the form that the runtime handler wants, and returns it. Pulls of the same image with the same credentials join; the end of ctx ends
// the waiting, and the pull only after a while in which nobody came back for it. What a broken pull has fetched is
// used by the next one.
func (s *Store) Pull(ctx context.Context, r PullRequest) (Image, error) {
	name, err := normalize(r.Ref)
	if err != nil {
		return Image{}, err
	}
	f, err := s.join(ctx, name, r.Auth, s.formOf(r.Handler))
	if err != nil {
		return Image{}, err
	}
	defer s.leave(f)
	var tick <-chan time.Time
	if r.Progress != nil {
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-f.done:
			if r.Progress != nil {
				r.Progress(f.progress.read())
			}
			return f.image, f.err
		case <-tick:
			r.Progress(f.progress.read())
		case <-ctx.Done():
			return Image{}, fmt.Errorf("pull image %s: still in progress (%s); the work goes on and a retry joins it: %w",
				name, f.progress.read().Stage, context.Cause(ctx))
		}
	}
}

func flightKey(name reference.Named, a *Auth, form string) (string, error) {
	raw, err := json.Marshal(a)
	sum := sha256.Sum256(raw)
	return name.String() + " " + form + " " + hex.EncodeToString(sum[:]), err
}

func (s *Store) join(from context.Context, name reference.Named, a *Auth, form string) (*flight, error) {
	key, err := flightKey(name, a, form)
	if err != nil {
		return nil, fmt.Errorf("pull image %s: %w", name, err)
	}
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if s.life.Err() != nil {
		return nil, fmt.Errorf("pull image %s: the image store is closed: %w", name, ErrUnavailable)
	}
	if s.flights.all == nil {
		s.flights.all = map[string]*flight{}
	}
	f := s.flights.all[key]
	if f == nil {
		f = s.takeOff(from, key, func(ctx context.Context, p *progress) (Image, error) { return s.pull(ctx, name, a, form, p) })
	}
	if f.waiting++; f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	return f, nil
}

// takeOff begins a pull, which shows in the trace of the request that it is for. Preconditions: flights.mu is held.
func (s *Store) takeOff(from context.Context, key string, pull func(context.Context, *progress) (Image, error)) *flight {
	limited, release := context.WithTimeout(telemetry.Under(s.life, from), pullTime)
	ctx, cancel := context.WithCancelCause(limited)
	f := &flight{done: make(chan struct{}), cancel: cancel}
	s.flights.all[key] = f
	s.flights.wg.Go(func() {
		defer release()
		image, err := pull(ctx, &f.progress)
		s.flights.mu.Lock()
		f.image, f.err = image, err
		if s.flights.all[key] == f {
			delete(s.flights.all, key)
		}
		s.flights.mu.Unlock()
		cancel(nil)
		close(f.done)
	})
	return f
}

func (s *Store) leave(f *flight) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if f.waiting--; f.waiting > 0 {
		return
	}
	select {
	case <-f.done:
		return
	default:
	}
	f.timer = time.AfterFunc(s.abandonAfter, func() { s.abandon(f) })
}

// abandon ends a pull that nobody has come back to. It is forgotten at once, so that a late-comer begins anew and does not
// join what is ending.
func (s *Store) abandon(f *flight) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if f.waiting > 0 {
		return
	}
	for key, g := range s.flights.all {
		if g == f {
			delete(s.flights.all, key)
		}
	}
	f.cancel(errAbandoned)
}
