// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/test/thread"
)

func TestStoppedIsWhoseEveryThreadStandsStill(t *testing.T) {
	threads, _, _ := thread.Start(t)
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	for name, pid := range map[string]int{"one thread": sleep.Process.Pid, "first thread has ended": threads.Pid} {
		t.Run(name, func(t *testing.T) {
			if pid == threads.Pid {
				waitFor(t, pid, func(s Stat) bool { return s.State == 'Z' })
			}
			waitFor(t, pid, func(s Stat) bool { return !isStopped(t, s) })
			for _, step := range []struct {
				signal syscall.Signal
				want   bool
			}{{syscall.SIGSTOP, true}, {syscall.SIGCONT, false}, {syscall.SIGKILL, true}} {
				if err := syscall.Kill(pid, step.signal); err != nil {
					t.Fatal(err)
				}
				waitFor(t, pid, func(s Stat) bool { return isStopped(t, s) == step.want })
			}
		})
	}
}

func isStopped(t *testing.T, s Stat) bool {
	t.Helper()
	is, err := s.Stopped()
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func waitFor(t *testing.T, pid int, f func(Stat) bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := ReadStat(pid)
		if err != nil {
			t.Fatal(err)
		}
		if f(stat) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it stays as it is: %+v", stat)
		}
	}
}
