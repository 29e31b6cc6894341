// SPDX-License-Identifier: Apache-2.0

package reaper

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/pidfd"
)

func newReaper(t *testing.T) *Reaper {
	t.Helper()
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		if len(r.procs) != 0 || r.kept != nil || r.open != 0 {
			t.Errorf("left over: %d processes, %d kept exits, %d expectations", len(r.procs), len(r.kept), r.open)
		}
	})
	return r
}

// shell returns a command that writes to out.
func shell(script string, out *os.File) Command {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	return Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Files: []uintptr{null.Fd(), out.Fd(), null.Fd()}}
}

func wait(t *testing.T, p *Process) Exit {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatalf("process %d does not end", p.PID)
	}
	return p.Exit()
}

func TestExitCodesAndSignals(t *testing.T) {
	r := newReaper(t)
	for script, want := range map[string][2]int{
		"exit 0":         {0, 0},
		"exit 7":         {7, 0},
		"kill -KILL $$":  {137, 9},
		"kill -SEGV $$":  {139, 11},
		"exit 137":       {137, 0},
		"sleep 0.05":     {0, 0},
		"kill -TERM $$ ": {143, 15},
	} {
		p, err := r.Start(shell(script, os.Stderr))
		if err != nil {
			t.Fatal(err)
		}
		exit := wait(t, p)
		if exit.Code() != uint32(want[0]) || exit.Signal() != want[1] || time.Since(exit.At) > time.Minute {
			t.Errorf("%s: code %d signal %d at %v", script, exit.Code(), exit.Signal(), exit.At)
		}
		if err := p.Signal(syscall.SIGKILL); !errors.Is(err, pidfd.ErrGone) {
			t.Errorf("%s: signal after exit: %v", script, err)
		}
		called := make(chan Exit, 1)
		p.AfterExit(func(e Exit) { called <- e })
		if e := <-called; e != exit {
			t.Errorf("%s: late callback got %+v", script, e)
		}
	}
}

// orphan starts a shell that leaves a process behind and returns the pid of that.
func orphan(t *testing.T, r *Reaper, script string) int {
	t.Helper()
	return printed(t, r, "("+script+") >/dev/null & echo $!")
}

// printed runs a shell to its end and returns the pid that it printed, or one that it left behind.
func printed(t *testing.T, r *Reaper, script string) int {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p, err := r.Start(shell(script, out))
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 32)
	n, err := in.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestOrphanIsAdoptedAlive(t *testing.T) {
	r := newReaper(t)
	expect := r.Expect()
	defer expect.Close()
	p, err := expect.Adopt(orphan(t, r, "exec sleep 60"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := expect.Adopt(p.PID); err == nil {
		t.Error("adopted twice")
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, p); exit.Signal() != int(syscall.SIGTERM) {
		t.Fatalf("%+v", exit)
	}
}

func TestADescendantIsAdoptedWhenThoseInBetweenHaveEnded(t *testing.T) {
	for name, script := range map[string]string{
		"alive": "(sleep 1000 & echo $!; sleep 0.3) &",
		"ended": "(sleep 0.1 & echo $!; exec sleep 0.3) &", // which does not reap it
	} {
		t.Run(name, func(t *testing.T) {
			r := newReaper(t)
			expect := r.Expect()
			defer expect.Close()
			pid := printed(t, r, script)
			p, err := expect.Adopt(pid)
			if err != nil {
				t.Fatal(err)
			}
			_ = p.Signal(syscall.SIGKILL) // it may have ended
			wait(t, p)
		})
	}
}

func TestOrphanThatEndedFirstKeepsItsExit(t *testing.T) {
	r := newReaper(t)
	expect := r.Expect()
	defer expect.Close()
	pid := orphan(t, r, "while kill -0 $$; do sleep 0.01; done; exit 42") // once its parent is gone: that one would reap it
	deadline := time.Now().Add(5 * time.Second)
	for syscall.Kill(pid, 0) == nil && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	later := r.Expect()
	defer later.Close()
	if _, err := later.Adopt(pid); !errors.Is(err, ErrNotAChild) {
		t.Fatalf("an exit from before the expectation was taken: %v", err)
	}
	p, err := expect.Adopt(pid)
	if err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, p); exit.Code() != 42 {
		t.Fatalf("%+v", exit)
	}
}

func TestKeptExitsAreBounded(t *testing.T) {
	r := newReaper(t)
	expect := r.Expect()
	defer expect.Close()
	pid := orphan(t, r, "i=0; while [ $i -lt "+strconv.Itoa(maxKept+50)+" ]; do (/bin/true &); i=$((i+1)); done; exit 3")
	deadline := time.Now().Add(60 * time.Second)
	for syscall.Kill(pid, 0) == nil && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	r.mu.Lock()
	kept, capacity := len(r.kept), cap(r.kept)
	r.mu.Unlock()
	if kept > maxKept || capacity > 2*maxKept {
		t.Fatalf("%d exits kept, room for %d", kept, capacity)
	}
	p, err := expect.Adopt(pid)
	if err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, p); exit.Code() != 3 {
		t.Fatalf("%+v", exit)
	}
}

func TestStrangersAreNotAdopted(t *testing.T) {
	r := newReaper(t)
	expect := r.Expect()
	defer expect.Close()
	if _, err := expect.Adopt(1); !errors.Is(err, ErrNotAChild) {
		t.Fatal(err)
	}
}

func TestCloseInheritedSparesOurOwn(t *testing.T) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fds[0])
	inherited, err := syscall.Dup(fds[1]) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	if err := CloseInherited(inherited); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Close(inherited); !errors.Is(err, syscall.EBADF) {
		t.Errorf("inherited descriptor: %v", err)
	}
	if err := syscall.Close(fds[1]); err != nil {
		t.Errorf("our own: %v", err)
	}
}

func TestStartOfMissingProgram(t *testing.T) {
	r := newReaper(t)
	if _, err := r.Start(Command{Path: "/no/such/program", Args: []string{"x"}}); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}
