// SPDX-License-Identifier: Apache-2.0

package thread

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { runtime.LockOSThread() } // TestMain then runs on the main thread

// TestMain also checks what no ordinary test can: that a function asked for on the main thread runs on another.
func TestMain(m *testing.M) {
	if err := checkMainThread(); err != nil {
		fmt.Fprintln(os.Stderr, "main thread:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func checkMainThread() error {
	if unix.Gettid() != unix.Getpid() {
		return fmt.Errorf("the test does not run on the main thread")
	}
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	done := make(chan outcome, 1)
	enlist(func() (bool, error) {
		if unix.Gettid() == unix.Getpid() {
			return true, fmt.Errorf("the function ran on the main thread")
		}
		return false, unix.Unshare(unix.CLONE_NEWNET)
	}, done)
	if o := <-done; o.err != nil {
		return o.err
	}
	after, err := os.Readlink("/proc/self/ns/net")
	if err == nil && after != before {
		err = fmt.Errorf("the process moved from %s to %s", before, after)
	}
	return err
}

func TestAThreadThatIsElsewhereServesNobodyElse(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := Run(func() (bool, error) { return false, unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
			t.Fatal(err)
		}
		err := Run(func() (bool, error) {
			now, err := os.Readlink("/proc/thread-self/ns/net")
			if err == nil && now != before {
				err = fmt.Errorf("the thread is in %s, the process in %s", now, before)
			}
			return true, err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestAPanicIsItsCallers(t *testing.T) {
	defer func() {
		if p := recover(); p != "here" {
			t.Errorf("got %v", p)
		}
	}()
	t.Error(Run(func() (bool, error) { panic("here") }))
}

func TestAGoroutineThatEndsIsAnError(t *testing.T) {
	if err := Run(func() (bool, error) { runtime.Goexit(); return true, nil }); err == nil {
		t.Error("no error")
	}
}
