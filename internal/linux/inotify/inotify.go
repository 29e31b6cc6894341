// SPDX-License-Identifier: Apache-2.0

// Package inotify tells of changes of files and folders. Unlike a library for all systems it leaves to the caller which changes of which
// folder wake it up, so that a process that watches a busy folder for one thing sleeps through the others.
package inotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Mask is a set of kinds of changes (inotify(7)).
type Mask uint32

const (
	// Entries are names that come into or leave a folder.
	Entries Mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	// Contents are writes to the files in a folder.
	Contents Mask = unix.IN_MODIFY | unix.IN_CLOSE_WRITE
	// Self is the watched folder's own removal or renaming. It does not tell of that of a folder above.
	Self Mask = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF

	// Lost comes without being asked for: the kernel's queue was full, and events of any watch are missing.
	Lost Mask = unix.IN_Q_OVERFLOW
	// Unmounted comes without being asked for: the file system has gone with the watch.
	Unmounted Mask = unix.IN_UNMOUNT

	ended = unix.IN_IGNORED // a watch has ended; of no use to a caller, who has ended it or been told why
)

// Event is one change.
type Event struct {
	// Watch is what Add returned; -1 with Lost.
	Watch int
	Mask  Mask
	// Name is that of the entry, "" where the change is of the folder itself.
	Name string
}

// Watcher is an inotify instance. Add and Remove may be called while another goroutine is in Read.
type Watcher struct {
	file *os.File // in the poller

	once  sync.Once
	close error

	buf [64 << 10]byte // of Read: one event takes at most 16 + 256 bytes
}

// New makes an instance. Error: the user has no more (fs.inotify.max_user_instances; EMFILE).
func New() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make inotify instance: %w", err)
	}
	return &Watcher{file: os.NewFile(uintptr(fd), "inotify")}, nil
}

// Close ends all watches and Read. It may be called again.
func (w *Watcher) Close() error {
	w.once.Do(func() { w.close = w.file.Close() })
	return w.close
}

// Add watches a folder, or changes what is wanted of it, and returns the watch's number, which is the folder's, not the path's. Symbolic
// links are followed. Errors: fs.ErrNotExist and its kin; ENOSPC where the user has no more watches.
func (w *Watcher) Add(dir string, mask Mask) (watch int, err error) {
	err = w.control(func(fd int) error {
		watch, err = unix.InotifyAddWatch(fd, dir, uint32(mask)|unix.IN_ONLYDIR)
		return err
	})
	if err != nil {
		return -1, &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	return watch, nil
}

// Remove ends a watch. One that has ended by itself is no error.
func (w *Watcher) Remove(watch int) error {
	err := w.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(watch)) //nolint:gosec // watches are positive
		return err
	})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("end watch: %w", err)
	}
	return nil
}

// control keeps the descriptor open during f.
func (w *Watcher) control(f func(fd int) error) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(raw.Control(func(fd uintptr) { inner = f(int(fd)) }), inner)
}

// Read waits for events, and returns at least one. One goroutine may call it. Error: os.ErrClosed after Close.
func (w *Watcher) Read() ([]Event, error) {
	for {
		n, err := w.file.Read(w.buf[:])
		if err != nil {
			return nil, fmt.Errorf("read inotify events: %w", err)
		}
		if all := parse(w.buf[:n]); len(all) > 0 {
			return all, nil
		}
	}
}

// parse reads the kernel's records: watch, mask, cookie, length of the name, the name filled up with zeros.
func parse(data []byte) (all []Event) {
	for len(data) >= unix.SizeofInotifyEvent {
		watch, mask := int32(binary.NativeEndian.Uint32(data)), binary.NativeEndian.Uint32(data[4:]) //nolint:gosec // as the kernel means it
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(data[12:]))
		if end > len(data) {
			return all
		}
		name, _, _ := bytes.Cut(data[unix.SizeofInotifyEvent:end], []byte{0})
		data = data[end:]
		if mask&^(ended|unix.IN_ISDIR) != 0 {
			all = append(all, Event{Watch: int(watch), Mask: Mask(mask &^ unix.IN_ISDIR), Name: string(name)})
		}
	}
	return all
}
