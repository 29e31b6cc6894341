// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
)

const (
	// stopLimit bounds how long a tree is stopped before it is killed: thousands of processes take seconds on a busy machine.
	stopLimit = 5 * time.Second
	// sleepLimit bounds how long one that sleeps in the kernel, and does not stop, is waited for: nobody forks for that long.
	sleepLimit = time.Second
)

// processTree is what an exec has started: its descendants, and the processes of the container that are in the
// session that the OCI runtime made for it, even those whose parents are gone.
type processTree struct {
	group     cgroup
	leader    int
	startTime uint64 // of leader
}

// member is a process of the tree as one look has found it.
type member struct {
	proc.Stat
	stopped   bool // before its children were looked for: it had no others
	childless bool
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
	errs := []error{t.stop(syscall.SIGCONT)}
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
	stopErr := t.stop(syscall.SIGKILL)
	var dying []proc.Stat // children first: where a parent ends, the kernel lets its stopped ones go on
	err := untilNone(killLimit, func() (int, error) {
		members, err := t.members()
		if err != nil {
			return 0, err
		}
		slices.Reverse(members)
		found := make(map[int]bool)
		for _, p := range members {
			found[p.PID] = true
		}
		// Those whose parents have ended before them are no members any more.
		lost := slices.DeleteFunc(dying, func(p proc.Stat) bool { return found[p.PID] || !proc.Is(p.PID, p.StartTime) })
		dying = append(members, lost...)
		return len(dying), signalEach(dying, syscall.SIGKILL)
	})
	if err == nil {
		return nil // nothing is left, however well it stood still
	}
	return errors.Join(stopErr, err)
}

// stop stops all members. A parent that is killed while it forks would leave a child that nobody finds, if that is in a session of its own;
// one that stands still forks no more, and its children stay its own. So each is told when it is found, parents first, before its children are looked for, and that goes on until nothing
// moves: one that sleeps in the kernel, told or not, may be about to have a child.
//
// A parent that waits for its child in vfork stands still only when that has ended or has its program, which a child that is stopped never will. It gets
// the signal unblock, SIGKILL or SIGCONT.
//
// The container's freezer would stop all of it at one instant, and leave it so for ever when this shim is killed meanwhile.
// What does not stand still when the time is over, since it waits for a disk, say, is left to the caller as it is. What its parent has left alone before it was seen, in a session of its own,
// is not in the tree.
func (t *processTree) stop(unblock syscall.Signal) error {
	s := stopping{told: make(map[proc.ID]time.Time)}
	deadline := time.Now().Add(stopLimit)
	quiet := 0 // looks, one after the other
	for pause := time.Millisecond; ; {
		members, err := t.look(s.tell)
		if err != nil {
			return err
		}
		moving := s.moving(members)
		if len(moving) > 0 && time.Now().After(deadline) {
			return nil
		}
		if len(moving) == 0 {
			// One that still moved during this look may have woken, by SIGCONT or as its tracer, another that the look had passed.
			if quiet++; quiet == 2 {
				return nil
			}
			continue
		}
		quiet = 0
		awaited := slices.DeleteFunc(members, func(m member) bool { return !m.stopped || !m.childless || !moving[m.PPID] })
		if err := signalEach(stats(awaited), unblock); err != nil {
			return err
		}
		time.Sleep(pause)
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// stopping remembers who has been told to stop, and when first.
type stopping struct {
	told map[proc.ID]time.Time
}

func (s *stopping) tell(m member) error {
	id := proc.ID{PID: m.PID, StartTime: m.StartTime}
	if m.stopped {
		return nil
	}
	if _, ok := s.told[id]; !ok {
		s.told[id] = time.Now()
	}
	return signalEach([]proc.Stat{m.Stat}, syscall.SIGSTOP)
}

// moving are the pids of the members that may have children yet.
func (s *stopping) moving(members []member) map[int]bool {
	moving := make(map[int]bool)
	for _, m := range members {
		asleep := m.State != 'R' && m.State != 'S' && time.Since(s.told[proc.ID{PID: m.PID, StartTime: m.StartTime}]) > sleepLimit
		if !m.stopped && !asleep {
			moving[m.PID] = true
		}
	}
	return moving
}

func (t *processTree) members() ([]proc.Stat, error) {
	members, err := t.look(func(member) error { return nil })
	return stats(members), err
}

func stats(members []member) []proc.Stat {
	all := make([]proc.Stat, len(members))
	for i, m := range members {
		all[i] = m.Stat
	}
	return all
}

// look finds all members that live, each of which it shows to found before it looks for its children: the leader's tree, parents before children, then those
// whose parents are gone, with theirs. Killed in the opposite order, none is let go on by the kernel, as are stopped ones whose group loses the last tie to its session.
func (t *processTree) look(found func(member) error) ([]member, error) {
	l := &look{found: found, seen: make(map[int]bool)}
	leader, err := proc.ReadStat(t.leader)
	if err == nil && leader.StartTime != t.startTime {
		// The number has gone to another process: the kernel does not do that while the session has members.
		return nil, nil
	}
	if err == nil {
		if err := l.add(leader); err != nil {
			return nil, err
		}
	}
	inside, err := t.group.pids()
	if err != nil {
		return nil, err
	}
	for _, pid := range inside {
		if l.seen[pid] {
			continue
		}
		if p, err := proc.ReadStat(pid); err == nil && p.Session == t.leader {
			if err := l.add(p); err != nil {
				return nil, err
			}
		}
	}
	return slices.DeleteFunc(l.members, func(m member) bool { return m.Ended() }), nil
}

type look struct {
	found   func(member) error
	members []member
	seen    map[int]bool
}

// add adds a process with its descendants.
func (l *look) add(root proc.Stat) error {
	l.seen[root.PID] = true
	l.members = append(l.members, member{Stat: root})
	for i := len(l.members) - 1; i < len(l.members) && len(l.members) < maxCgroupProcs; i++ { // grows while it runs
		if l.members[i].Ended() {
			continue
		}
		if err := l.descend(i); err != nil {
			return err
		}
	}
	return nil
}

// descend adds the children of the member at i.
func (l *look) descend(i int) error {
	parent := l.members[i]
	var err error
	if parent.stopped, err = parent.Stopped(); err != nil {
		return err
	}
	if err := l.found(parent); err != nil {
		return err
	}
	children, err := parent.Children()
	if err != nil {
		return err
	}
	parent.childless = true
	for _, pid := range children {
		stat, err := proc.ReadStat(pid)
		if err != nil || stat.PPID != parent.PID {
			continue
		}
		parent.childless = parent.childless && stat.Ended()
		if !l.seen[pid] {
			l.seen[pid] = true
			l.members = append(l.members, member{Stat: stat})
		}
	}
	l.members[i] = parent
	return nil
}
