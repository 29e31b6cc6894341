// SPDX-License-Identifier: Apache-2.0

package netns

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
