// SPDX-License-Identifier: Apache-2.0

// Package thread makes, for tests, a process whose first thread ends before the others: a zombie to /proc that
// lives on. pthread_exit in main does it, and the end of every process with threads goes through it briefly.
package thread

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

const environment = "BERTH_TEST_FIRST_THREAD_ENDS"

// init is on the first thread.
func init() {
	hold := os.Getenv(environment)
	if hold == "" {
		return
	}
	runtime.LockOSThread()
	go func() {
		for _, err := os.Stat(hold); err == nil; _, err = os.Stat(hold) {
			time.Sleep(time.Millisecond)
		}
		os.Exit(0)
	}()
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0) // does not return
}

// Start returns such a process, which nobody waits for, with a pidfd of it. It ends at release or with the test.
func Start(t *testing.T) (process *os.Process, pidFD int, release func()) {
	t.Helper()
	hold := filepath.Join(t.TempDir(), "hold")
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pidFD = -1
	process, err := os.StartProcess("/proc/self/exe", os.Args[:1], &os.ProcAttr{
		Env: append(os.Environ(), environment+"="+hold), Sys: &syscall.SysProcAttr{PidFD: &pidFD},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Kill() }) // an error: it was waited for
	return process, pidFD, func() {
		if err := os.Remove(hold); err != nil {
			t.Error(err)
		}
	}
}
