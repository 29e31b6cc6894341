// SPDX-License-Identifier: Apache-2.0

// Package pidfd holds on to a process in a way that survives the reuse of its pid. Anything that
// signals a process it did not just start uses it.
package pidfd

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrGone means that the process has ended (and, when opening, that nobody waits for it any more).
var ErrGone = errors.New("process is gone")

// FD refers to one process, whatever happens to its pid.
type FD struct {
	pid int

	mu sync.Mutex
	fd int // -1 once closed
}

// Open takes hold of the process that has the pid now.
func Open(pid int) (*FD, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, ErrGone)
	case err != nil:
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	return &FD{pid: pid, fd: fd}, nil
}

// Signal sends sig; ErrGone if the process has ended or f is closed.
func (f *FD) Signal(sig syscall.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return fmt.Errorf("signal %d: %w", f.pid, ErrGone)
	}
	err := unix.PidfdSendSignal(f.fd, sig, nil, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("signal %d: %w", f.pid, ErrGone)
	case err != nil:
		return fmt.Errorf("signal %d: %w", f.pid, err)
	}
	return nil
}

// Close lets go of the process. It may be called again.
func (f *FD) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close pidfd of %d: %w", f.pid, err)
	}
	return nil
}

// KillIf signals the process that has the pid now if same, called while the process is held, still
// recognises it: so the pid cannot be reused between the look and the signal. It reports whether
// it sent the signal.
func KillIf(pid int, sig syscall.Signal, same func() bool) (bool, error) {
	f, err := Open(pid)
	if errors.Is(err, ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if !same() {
		return false, nil
	}
	if err := f.Signal(sig); err != nil && !errors.Is(err, ErrGone) {
		return false, err
	}
	return true, nil
}

// Ended tells whether the process of the descriptor, all its threads, has ended, without reaping it.
func Ended(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
