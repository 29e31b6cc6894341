// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long changes are collected before the folder is read again. It is counted from the first one, so
// that somebody who writes all the time cannot put it off.
const settle = 50 * time.Millisecond

// watcher tells when the configuration folder may have changed. It watches the folder and all folders above it, for
// any of them may be missing, be made later, or be moved away with all that is in it. It never polls.
type watcher struct {
	dir string
	fs  *fsnotify.Watcher

	mu   sync.Mutex // guards also
	also string     // folder of plugins in files of their own
}

func newWatcher(dir string) (*watcher, error) {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watcher{dir: filepath.Clean(dir), fs: fs}
	if w.renew() == 0 {
		return nil, errors.Join(fmt.Errorf("watch %s: no folder above it can be watched", dir), fs.Close())
	}
	return w, nil
}

func (w *watcher) close() error {
	if err := w.fs.Close(); err != nil {
		return fmt.Errorf("stop watching %s: %w", w.dir, err)
	}
	return nil
}

// alsoWatch tells whether dir is watched only from now on.
func (w *watcher) alsoWatch(dir string) bool {
	w.mu.Lock()
	fresh := w.also != dir
	w.also = dir
	w.mu.Unlock()
	return fresh && w.fs.Add(dir) == nil // usually it does not exist; its coming is an event of the folder above
}

// renew watches what is there now. The watches are made anew because the old ones follow a folder that was moved.
func (w *watcher) renew() int {
	for _, path := range w.fs.WatchList() {
		_ = w.fs.Remove(path) // it may have gone
	}
	w.mu.Lock()
	also := w.also
	w.mu.Unlock()
	if also != "" {
		_ = w.fs.Add(also)
	}
	var dirs []string
	for dir := w.dir; ; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	watched := 0
	for _, dir := range slices.Backward(dirs) { // from the top, so that a folder made meanwhile is seen by the one above
		if err := w.fs.Add(dir); err == nil {
			watched++
		}
	}
	return watched
}

// loop calls changed, after the watches are made anew: what happens from then on is another event.
func (w *watcher) loop(ctx context.Context, changed func()) {
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-w.fs.Events:
			if due == nil && w.concerns(ev) {
				due = time.After(settle)
			}
		case <-w.fs.Errors: //nolint:errcheck // events were lost: which, nobody can say, so all is read again
			if due == nil {
				due = time.After(settle)
			}
		case <-due:
			due = nil
			w.renew()
			changed()
		}
	}
}

// concerns is false for the rest of what happens in /, /etc and so on.
func (w *watcher) concerns(ev fsnotify.Event) bool {
	if ev.Op == fsnotify.Chmod {
		return false
	}
	path := filepath.Clean(ev.Name)
	return path == w.dir || strings.HasPrefix(path, w.dir+"/") || strings.HasPrefix(w.dir, strings.TrimSuffix(path, "/")+"/")
}
