// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/berth-run/berth/internal/linux/pidfd"
)

// watch reaps a shim that this process started. It parks a goroutine on the pidfd, not a thread in wait4: with a
// thread for each, hundreds of pods would cost the daemon hundreds of threads.
type watch struct {
	sandbox string
	process *os.Process
	fd      *os.File // the pidfd, in the poller; nil where the kernel has none
	once    sync.Once
	// killing: KillShim is about to end the shim, or has.
	killing atomic.Bool
}

// watch takes over the process and the pidfd.
func (r *Runtime) watch(sandbox string, process *os.Process, pidFD int) error {
	w := &watch{sandbox: sandbox, process: process}
	if pidFD >= 0 {
		if err := syscall.SetNonblock(pidFD, true); err != nil { // this makes NewFile put it into the poller
			return errors.Join(fmt.Errorf("watch process %d: %w", process.Pid, err), closePidFD(pidFD))
		}
		w.fd = os.NewFile(uintptr(pidFD), fmt.Sprintf("pidfd:%d", process.Pid))
	}
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.watches[w] = struct{}{}
	}
	r.mu.Unlock()
	if closed {
		w.close()
		return nil
	}
	go r.reap(w)
	return nil
}

func closePidFD(fd int) error {
	if fd < 0 {
		return nil
	}
	return syscall.Close(fd)
}

// close ends the watch, not the shim.
func (w *watch) close() {
	w.once.Do(func() {
		if w.fd != nil {
			w.fd.Close()
		}
	})
}

// reap waits for the end of the shim, and reports one that nobody asked for.
func (r *Runtime) reap(w *watch) {
	defer func() {
		r.mu.Lock()
		delete(r.watches, w)
		r.mu.Unlock()
		w.close()
	}()
	if !w.readable() {
		if err := w.process.Release(); err != nil { // only drops our handle
			r.log.Debug("let go of shim", "sandbox", w.sandbox, "pid", w.process.Pid, "error", err)
		}
		return
	}
	state, err := w.process.Wait() // at once, as the process has ended
	switch {
	case err != nil:
		r.log.Warn("reap shim", "sandbox", w.sandbox, "pid", w.process.Pid, "error", err)
	case state.Success(), w.killing.Load() && killed(state):
		r.log.Debug("shim has ended", "sandbox", w.sandbox, "pid", w.process.Pid, "status", state.String())
	default:
		r.log.Warn("shim has ended; its log is shim.log in the pod's state folder", "sandbox", w.sandbox, "pid", w.process.Pid,
			"status", state.String())
	}
}

// killed tells whether SIGKILL ended a process.
func killed(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// expectKill has the end of a sandbox's shim by SIGKILL reported as one that was asked for.
func (r *Runtime) expectKill(sandbox string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.watches {
		if w.sandbox == sandbox {
			w.killing.Store(true)
		}
	}
}

// readable waits until the process has ended; false: the watch was closed. Without a pidfd the wait is Wait's.
func (w *watch) readable() bool {
	if w.fd == nil {
		return true
	}
	raw, err := w.fd.SyscallConn()
	if err != nil {
		return false
	}
	// The first call must look for itself: RawRead forgets what the poller has said by then. The pidfd is asked, not
	// /proc, where a shim is a zombie when its first thread has ended: Wait would say EAGAIN while others live.
	return raw.Read(func(fd uintptr) bool { return pidfd.Ended(int(fd)) }) == nil
}
