// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/linux/inotify"
)

// settle is how long changes are collected before the folder is read again. It is counted from the first one, so
// that somebody who writes all the time cannot put it off.
const settle = 50 * time.Millisecond

// watcher tells when the configuration folder may have changed. It watches the folder and all folders above it, for
// any of them may be missing, be made later, or be moved away with all that is in it. It never polls, and what else
// happens in the folders above, which may be busy, does not wake it up.
type watcher struct {
	dir     string
	notify  *inotify.Watcher
	changes chan struct{} // holds one token when something has changed

	mu      sync.Mutex     // guards all below
	also    string         // folder of plugins in files of their own
	watches map[int]string // → the one entry that matters in that folder, "" for all
}

func newWatcher(dir string) (*watcher, error) {
	notify, err := inotify.New()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watcher{dir: filepath.Clean(dir), notify: notify, changes: make(chan struct{}, 1)}
	if w.renew() == 0 {
		return nil, errors.Join(fmt.Errorf("watch %s: no folder above it can be watched", dir), notify.Close())
	}
	return w, nil
}

func (w *watcher) close() error {
	if err := w.notify.Close(); err != nil {
		return fmt.Errorf("stop watching %s: %w", w.dir, err)
	}
	return nil
}

// all is what matters of a folder of configuration.
const all = inotify.Entries | inotify.Contents | inotify.Self

// alsoWatch tells whether dir is watched only from now on.
func (w *watcher) alsoWatch(dir string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh := w.also != dir
	w.also = dir
	return fresh && w.add(dir, all, "") // usually it does not exist; its coming is an event of the folder above
}

// add tells whether dir is watched. Preconditions: w.mu is held.
func (w *watcher) add(dir string, mask inotify.Mask, entry string) bool {
	n, err := w.notify.Add(dir, mask)
	if err == nil {
		w.watches[n] = entry
	}
	return err == nil
}

// renew watches what is there now. The watches are made anew because the old ones follow a folder that was moved.
func (w *watcher) renew() (watched int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := range w.watches {
		_ = w.notify.Remove(n) // it may have gone
	}
	w.watches = map[int]string{}
	path := []string{w.dir}
	for path[0] != filepath.Dir(path[0]) {
		path = slices.Insert(path, 0, filepath.Dir(path[0]))
	}
	for i, dir := range path {
		mask, entry := all, ""
		if i+1 < len(path) { // until the one below is known to be watched, it may come, and must be seen by this one
			mask, entry = inotify.Entries|inotify.Self, filepath.Base(path[i+1])
		}
		if !w.add(dir, mask, entry) {
			continue
		}
		watched++
		// The folder above it tells of a symbolic link that is replaced; a folder tells itself when it goes.
		if i > 0 && isFolder(dir) {
			w.add(path[i-1], inotify.Self, entry)
		}
	}
	if w.also != "" {
		w.add(w.also, all, "")
	}
	return watched
}

// isFolder is false for a symbolic link to one.
func isFolder(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// loop calls changed, after the watches are made anew: what happens from then on is another event.
func (w *watcher) loop(ctx context.Context, changed func()) {
	var reader sync.WaitGroup
	reader.Go(w.read)
	defer func() {
		_ = w.notify.Close() // ends the reader; close tells the error
		reader.Wait()
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changes:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		select { // what came meanwhile is seen now
		case <-w.changes:
		default:
		}
		w.renew()
		changed()
	}
}

// read notes what concerns the configuration, until close.
func (w *watcher) read() {
	for {
		events, err := w.notify.Read()
		if err != nil {
			return // closed
		}
		if !slices.ContainsFunc(events, w.concerns) {
			continue
		}
		select {
		case w.changes <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) concerns(e inotify.Event) bool {
	if e.Mask&inotify.Lost != 0 { // of which folder, nobody can say
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	entry, known := w.watches[e.Watch]
	return known && (entry == "" || e.Name == "" || e.Name == entry)
}
