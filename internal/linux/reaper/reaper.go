// SPDX-License-Identifier: Apache-2.0

// Package reaper starts processes and hands every exit to its owner. It owns SIGCHLD and wait4 of its whole
// process, so a program that uses it must not use os/exec or (*os.Process).Wait. It is also the subreaper:
// processes whose parents went away become this process's children and are reaped, owned or not.
package reaper

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/pidfd"
	"github.com/berth-run/berth/internal/linux/proc"
)

// maxKept bounds the exits that are kept for an owner who does not know the pid yet.
const maxKept = 1024

// Exit is how and when a process ended.
type Exit struct {
	PID    int
	Status syscall.WaitStatus
	At     time.Time
}

// Code returns the exit code, by the shell's rule 128+signal for a process that a signal ended.
func (e Exit) Code() uint32 {
	if e.Status.Signaled() {
		return 128 + uint32(e.Status.Signal())
	}
	return uint32(e.Status.ExitStatus())
}

// Signal returns the number of the signal that ended the process, 0 if none did.
func (e Exit) Signal() int {
	if e.Status.Signaled() {
		return int(e.Status.Signal())
	}
	return 0
}

// CloseInherited closes the descriptors from the given one on that this process's parent has left open by mistake.
// Our own are close-on-exec, so they are told apart.
func CloseInherited(from int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			return fmt.Errorf("close inherited descriptors: %w", err)
		}
		if fd < from {
			continue
		}
		// An error: it was the folder's own, which is closed.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
	return nil
}

// Reaper is made once per process.
type Reaper struct {
	signals chan os.Signal
	stopped chan struct{}

	mu    sync.Mutex
	procs map[int]*Process
	// kept are exits of unknown pids, oldest first, while an Expectation is open.
	kept []Exit
	open int
	sum  uint64 // kept exits ever dropped from the front: index of kept[0]
}

// New makes this process the subreaper and starts to reap.
func New() (*Reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	r := &Reaper{
		signals: make(chan os.Signal, 1),
		stopped: make(chan struct{}),
		procs:   make(map[int]*Process),
	}
	signal.Notify(r.signals, syscall.SIGCHLD)
	go r.run()
	return r, nil
}

// Close ends reaping; for tests.
func (r *Reaper) Close() {
	signal.Stop(r.signals)
	close(r.signals)
	<-r.stopped
}

func (r *Reaper) run() {
	defer close(r.stopped)
	for range r.signals {
		for r.reapOne() {
		}
	}
}

// reapOne holds the lock from wait4 to the hand-over, so that nobody who holds the lock sees a pid that is
// reaped but not yet handed over.
func (r *Reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	for errors.Is(err, syscall.EINTR) {
		pid, err = syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	}
	if err != nil || pid <= 0 {
		return false
	}
	exit := Exit{PID: pid, Status: status, At: time.Now()}
	if p, ok := r.procs[pid]; ok {
		delete(r.procs, pid)
		p.finish(exit)
		return true
	}
	if r.open > 0 {
		if len(r.kept) == maxKept {
			r.kept = append(r.kept[:0], r.kept[1:]...)
			r.sum++
		}
		r.kept = append(r.kept, exit)
	}
	return true
}

// Process is one that this process started or adopted.
type Process struct {
	PID int

	fd   *pidfd.FD // nil if it had ended before it was known
	done chan struct{}
	exit Exit

	mu     sync.Mutex
	after  []func(Exit)
	closed bool
}

// Done is closed when the process has ended and is reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit waits for the end of the process.
func (p *Process) Exit() Exit {
	<-p.done
	return p.exit
}

// AfterExit runs f in a goroutine of its own when the process has ended: an idle process costs none.
func (p *Process) AfterExit(f func(Exit)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		go f(p.exit)
		return
	}
	p.after = append(p.after, f)
}

// Signal sends sig; pidfd.ErrGone if the process has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	if p.fd == nil {
		return fmt.Errorf("signal %d: %w", p.PID, pidfd.ErrGone)
	}
	return p.fd.Signal(sig)
}

func (p *Process) finish(exit Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exit, p.closed = exit, true
	if p.fd != nil {
		p.fd.Close()
	}
	close(p.done)
	for _, f := range p.after {
		go f(exit)
	}
	p.after = nil
}

// Command is a process to start. Nothing is inherited that is not named here.
type Command struct {
	Path string
	Args []string // with the name of the program first
	Env  []string
	Dir  string
	// Files become descriptors 0, 1, 2, …; the caller keeps its own copies.
	Files []uintptr
}

// Start starts a process.
func (r *Reaper) Start(cmd Command) (*Process, error) {
	expect := r.Expect()
	defer expect.Close()
	pid, _, err := syscall.StartProcess(cmd.Path, cmd.Args, &syscall.ProcAttr{Dir: cmd.Dir, Env: cmd.Env, Files: cmd.Files})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return expect.Adopt(pid)
}

// Expectation is open while somebody starts a process whose pid will be known only later, from a
// pid file for instance. Exits of unknown processes are kept as long as one is open.
type Expectation struct {
	r    *Reaper
	from uint64 // exits before this one are older than the expectation
	once sync.Once
}

// Expect opens an Expectation; it must be open before the process is started.
func (r *Reaper) Expect() *Expectation {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
	return &Expectation{r: r, from: r.sum + uint64(len(r.kept))}
}

// Close ends the expectation. It may be called again.
func (e *Expectation) Close() {
	e.once.Do(func() {
		r := e.r
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.open--; r.open == 0 {
			r.sum += uint64(len(r.kept))
			r.kept = nil
		}
	})
}

// ErrNotAChild is returned for a pid that neither is a child nor has ended as one.
var ErrNotAChild = errors.New("not a child of this process")

// comingLimit and comingPace are for descendants that become children when those in between have ended.
const (
	comingLimit = 10 * time.Second
	comingPace  = time.Millisecond
)

// Adopt takes on a child, alive or ended since the expectation was opened. A descendant is waited for, up to ten seconds: crun ends while a process that
// it has forked, the parent of the container's, is still on its way out.
func (e *Expectation) Adopt(pid int) (*Process, error) {
	for deadline := time.Now().Add(comingLimit); ; time.Sleep(comingPace) {
		p, err := e.adopt(pid)
		if !errors.Is(err, ErrNotAChild) {
			return p, err
		}
		if !descends(pid) || time.Now().After(deadline) {
			return e.adopt(pid) // it may have come, and gone, between the two looks
		}
	}
}

// descends tells whether a living process is a descendant of this one.
func descends(pid int) bool {
	for range 64 { // a bound, should numbers change hands meanwhile
		stat, err := proc.ReadStat(pid)
		if err != nil || stat.PPID <= 1 {
			return false
		}
		if pid = stat.PPID; pid == os.Getpid() {
			return true
		}
	}
	return false
}

func (e *Expectation) adopt(pid int) (*Process, error) {
	r := e.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.procs[pid]; ok {
		return nil, fmt.Errorf("adopt process %d: it has an owner", pid)
	}
	p := &Process{PID: pid, done: make(chan struct{})}
	// A living child wins over a kept exit: that one belongs to an earlier process with this pid. Nothing can
	// be reaped while the lock is held, so the child cannot vanish in between.
	stat, err := proc.ReadStat(pid)
	if err == nil && stat.PPID == os.Getpid() {
		if p.fd, err = pidfd.Open(pid); err != nil {
			return nil, fmt.Errorf("adopt process %d: %w", pid, err)
		}
		r.procs[pid] = p
		return p, nil
	}
	skip := 0
	if e.from > r.sum {
		skip = int(e.from - r.sum)
	}
	for i := len(r.kept) - 1; i >= skip; i-- {
		if r.kept[i].PID == pid {
			p.finish(r.kept[i])
			return p, nil
		}
	}
	return nil, fmt.Errorf("adopt process %d: %w", pid, ErrNotAChild)
}
