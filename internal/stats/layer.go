// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/linux/fsys"
)

const (
	// inlineFiles is how many files of a writable layer are counted while somebody waits, and only the first time; larger layers, and
	// later counts, are for the background.
	inlineFiles = 64
	// minAge is how old a count may become before the next question makes a new one.
	minAge = 10 * time.Second
	// restFactor times what a count took is the pause after it: counting takes at most a twentieth of one CPU.
	restFactor = 20
	// countTimeout bounds one count; a layer that takes longer keeps the figure before.
	countTimeout = 5 * time.Minute
)

// Layer is what a container's writable layer takes.
type Layer struct {
	// At is when it was counted.
	At            time.Time
	Bytes, Inodes uint64
}

// layers counts writable layers, one at a time, when somebody asks.
type layers struct {
	log  *slog.Logger
	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex // guards all below; never held while counting
	known   map[string]*layer
	queue   []string
	running bool
	closed  bool
}

type layer struct {
	dirs   []string
	last   Layer
	due    time.Time // when the next count may be made
	queued bool
}

func newLayers(log *slog.Logger) *layers {
	l := &layers{log: log, known: map[string]*layer{}}
	l.life, l.end = context.WithCancel(context.Background())
	return l
}

// Layer tells what the writable layer in the first folder takes, and the container's volumes in the others, which may be missing, as last counted;
// false: not counted yet. It reads at most a few files: a count that is due is made in the background.
func (c *Collector) Layer(id string, dirs ...string) (Layer, bool) {
	l := c.layers
	l.mu.Lock()
	k := l.known[id]
	if k != nil {
		l.ask(id, k)
		defer l.mu.Unlock()
		return k.last, !k.last.At.IsZero()
	}
	l.mu.Unlock()
	at := time.Now()
	u, err := countFolders(l.life, dirs, inlineFiles)
	l.mu.Lock()
	defer l.mu.Unlock()
	if k = l.known[id]; k == nil {
		k = &layer{dirs: dirs}
		l.known[id] = k
	}
	switch {
	case err == nil:
		k.last, k.due = Layer{at, u.Bytes, u.Inodes}, at.Add(minAge)
	case errors.Is(err, fsys.ErrTooMany):
		l.ask(id, k)
	default:
		l.complain(id, err)
	}
	return k.last, !k.last.At.IsZero()
}

// countFolders adds up; limit bounds the files that are looked at in each folder.
func countFolders(ctx context.Context, dirs []string, limit int) (fsys.Usage, error) {
	var sum fsys.Usage
	for i, dir := range dirs {
		u, err := fsys.UsageOf(ctx, dir, limit)
		if i > 0 && errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fsys.Usage{}, err
		}
		sum.Bytes, sum.Inodes = sum.Bytes+u.Bytes, sum.Inodes+u.Inodes
	}
	return sum, nil
}

// ask queues a count that is due. Preconditions: l.mu is held.
func (l *layers) ask(id string, k *layer) {
	if k.queued || l.closed || time.Now().Before(k.due) {
		return
	}
	k.queued = true
	l.queue = append(l.queue, id)
	if !l.running {
		l.running = true
		l.work.Go(l.run)
	}
}

// run counts what is queued, then ends.
func (l *layers) run() {
	for {
		id, dirs, ok := l.next()
		if !ok {
			return
		}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(l.life, countTimeout)
		u, err := countFolders(ctx, dirs, 0)
		cancel()
		took := time.Since(begin)
		l.counted(id, Layer{begin, u.Bytes, u.Inodes}, took, err)
		select {
		case <-time.After(min(took*restFactor, countTimeout)):
		case <-l.life.Done():
		}
	}
}

func (l *layers) next() (id string, dirs []string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) > 0 && !l.closed {
		id, l.queue = l.queue[0], l.queue[1:]
		if k := l.known[id]; k != nil {
			return id, k.dirs, true
		}
	}
	l.running, l.queue = false, nil
	return "", nil, false
}

func (l *layers) counted(id string, u Layer, took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.known[id]
	if k == nil {
		return
	}
	k.queued, k.due = false, time.Now().Add(max(minAge, took*restFactor))
	if err != nil {
		l.complain(id, err)
		return
	}
	k.last = u
}

func (l *layers) complain(id string, err error) {
	if l.life.Err() == nil && !errors.Is(err, fs.ErrNotExist) { // it is gone with its container
		l.log.Warn("count writable layer", "container", id, "error", err)
	}
}

func (l *layers) keep(ids map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.known {
		if !ids[id] {
			delete(l.known, id)
		}
	}
}

func (l *layers) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.end()
	l.work.Wait()
}
