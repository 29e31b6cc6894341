// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
)

// stopLimit bounds how long a tree is stopped before it is killed.
const stopLimit = time.Second

// processTree is what an exec has started: its descendants, and the processes of the container that are in the
// session that the OCI runtime made for it, even those whose parents are gone.
type processTree struct {
	group     cgroup
	leader    int
	startTime uint64 // of leader
}

// signal sends sig to all members once and returns how many there were.
func (t *processTree) signal(sig syscall.Signal) (int, error) {
	members, err := t.members()
	if err != nil {
		return 0, err
	}
	return len(members), signalEach(members, sig)
}

// hangUp sends SIGHUP once to all members, as the kernel does when a terminal's line ends. They are stopped meanwhile: what one of them makes between the
// look and the signal would outlive it untold. What it makes in answer to the signal is not told, either.
func (t *processTree) hangUp() error {
	errs := []error{t.stop()}
	told := make(map[int]bool)
	var all []proc.Stat
	// A second look finds what one has made that was not stopped in time; a process that SIGHUP is about to end makes no more.
	for deadline := time.Now().Add(stopLimit); ; {
		members, err := t.members()
		fresh := slices.DeleteFunc(members, func(p proc.Stat) bool { return told[p.PID] })
		errs = append(errs, err, signalEach(fresh, syscall.SIGHUP))
		if len(fresh) == 0 || time.Now().After(deadline) {
			break
		}
		for _, p := range fresh {
			told[p.PID] = true
		}
		all = append(all, fresh...)
	}
	return errors.Join(append(errs, signalEach(all, syscall.SIGCONT))...)
}

// kill ends all members and waits until none is left.
func (t *processTree) kill() error {
	if err := t.stop(); err != nil {
		return err
	}
	return untilNone(killLimit, func() (int, error) {
		members, err := t.members()
		if err != nil {
			return 0, err
		}
		slices.Reverse(members) // children first: where a parent ends, the kernel lets its stopped ones go on
		return len(members), signalEach(members, syscall.SIGKILL)
	})
}

// stop stops all members. A parent that is killed while it forks would leave a child that nobody finds, if that is in a session of its own;
// one that is told to stop forks no more, and its children stay its own. What is not stopped when the time is over is killed all the same.
func (t *processTree) stop() error {
	deadline := time.Now().Add(stopLimit)
	told := make(map[int]bool)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		members, err := t.members()
		if err != nil {
			return err
		}
		running := slices.DeleteFunc(members, func(p proc.Stat) bool {
			// One that sleeps in the kernel stops before it returns from there.
			return p.State == 'T' || p.State == 't' || p.State == 'D' && told[p.PID]
		})
		if len(running) == 0 || time.Now().After(deadline) {
			return nil
		}
		if err := signalEach(running, syscall.SIGSTOP); err != nil {
			return err
		}
		for _, p := range running {
			told[p.PID] = true
		}
		time.Sleep(pause)
	}
}

func (t *processTree) members() ([]proc.Stat, error) {
	leader, err := proc.ReadStat(t.leader)
	if err == nil && leader.StartTime != t.startTime {
		// The number has gone to another process: the kernel does not do that while the session has members.
		return nil, nil
	}
	seen := make(map[int]bool)
	var members []proc.Stat
	if err == nil {
		seen[t.leader] = true
		members = append(members, leader)
	}
	inside, err := t.group.processes()
	if err != nil {
		return nil, err
	}
	for _, p := range inside {
		if p.Session == t.leader && !seen[p.PID] {
			seen[p.PID] = true
			members = append(members, p)
		}
	}
	for i := 0; i < len(members) && len(members) < maxCgroupProcs; i++ { // grows while it runs
		children, err := proc.Children(members[i].PID)
		if err != nil {
			return nil, err
		}
		for _, pid := range children {
			stat, err := proc.ReadStat(pid)
			if err == nil && stat.PPID == members[i].PID && !seen[pid] {
				seen[pid] = true
				members = append(members, stat)
			}
		}
	}
	return living(members), nil
}

func living(processes []proc.Stat) []proc.Stat {
	var live []proc.Stat
	for _, p := range processes {
		if !p.Ended() {
			live = append(live, p)
		}
	}
	return live
}
