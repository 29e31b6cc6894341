// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs fn inside the network namespace pinned at path. The namespace is that of fn's goroutine alone: what fn
// starts with the go statement runs in the daemon's namespace. Sockets that fn opens stay in the pod's.
func Do(path string, fn func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("enter network namespace %s: %w", path, ErrNotPinned)
	}
	return onThread(func() (bool, error) { return visit(fd, path, fn) })
}

// visit tells whether the thread is back where it was, and so may serve others again.
func visit(fd int, path string, fn func() error) (home bool, err error) {
	back, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true, fmt.Errorf("enter network namespace %s: remember the own one: %w", path, err)
	}
	defer unix.Close(back)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	err = fn()
	return unix.Setns(back, unix.CLONE_NEWNET) == nil, err
}

// outcome is how a function on a foreign thread ended.
type outcome struct {
	err      error
	panicked any
}

// onThread runs fn on an OS thread that nobody else uses meanwhile. When fn answers false, panics or ends its
// goroutine, the thread is in an unknown namespace and ends with the goroutine: it never runs other code.
func onThread(fn func() (home bool, err error)) error {
	done := make(chan outcome, 1)
	go enlist(fn, done)
	o := <-done
	if o.panicked != nil {
		panic(o.panicked)
	}
	return o.err
}

func enlist(fn func() (bool, error), done chan<- outcome) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, Go would park it in the foreign namespace for ever, and /proc/self/ns
		// would show that to everybody. While it is held here, the next goroutine gets another thread.
		next := make(chan outcome, 1)
		go enlist(fn, next)
		done <- <-next
		runtime.UnlockOSThread()
		return
	}
	o := outcome{err: errors.New("run in namespace: the function ended its goroutine")}
	home := false
	defer func() {
		if !home {
			o.panicked = recover()
		}
		done <- o
		if home {
			runtime.UnlockOSThread()
		}
	}()
	home, o.err = fn()
}
