// SPDX-License-Identifier: Apache-2.0

// Package thread runs functions on OS threads of their own, which may enter namespaces. Other packages of linux use it.
package thread

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// outcome is how a function on a foreign thread ended.
type outcome struct {
	err      error
	panicked any
}

// Run runs fn on an OS thread that nobody else uses meanwhile. When fn answers false, panics or ends its
// goroutine, the thread is in an unknown namespace and ends with the goroutine: it never runs other code.
func Run(fn func() (home bool, err error)) error {
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
