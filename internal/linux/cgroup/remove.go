// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/pidfd"
	"github.com/berth-run/berth/internal/linux/proc"
)

// ErrBusy means that a cgroup still has processes.
var ErrBusy = errors.New("cgroup is not empty")

const (
	// busyRetry bounds how long Remove waits for the kernel to let go of a cgroup whose last process has ended.
	busyRetry = 2 * time.Second
	firstPace = time.Millisecond
	lastPace  = 50 * time.Millisecond
)

// Remove removes the cgroup and all cgroups below it from every hierarchy. It is idempotent. A cgroup whose
// last process has just ended can be busy for some milliseconds: that is retried for at most two seconds or
// until ctx ends; then ErrBusy, with the processes that are in it. It kills nothing.
func (h *Hierarchies) Remove(ctx context.Context, cgroup string) error {
	if err := own(cgroup); err != nil {
		return fmt.Errorf("remove cgroup %q: %w", cgroup, err)
	}
	ctx, cancel := context.WithTimeout(ctx, busyRetry)
	defer cancel()
	for pace := firstPace; ; pace = min(2*pace, lastPace) {
		var failed error
		for _, point := range h.all() {
			failed = errors.Join(failed, removeTree(filepath.Join(point, cgroup)))
		}
		if failed == nil {
			return nil
		}
		if !errors.Is(failed, syscall.EBUSY) {
			return fmt.Errorf("remove cgroup %s: %w", cgroup, failed)
		}
		if !sleep(ctx, pace) {
			pids, err := h.Pids(cgroup)
			return fmt.Errorf("remove cgroup %s: %w: processes %v: %w", cgroup, ErrBusy, pids, errors.Join(failed, err))
		}
	}
}

// RemoveEmpty removes the cgroup from every hierarchy in which it has neither processes nor cgroups below it, and tells whether it is left in any. It
// waits for nothing, and is idempotent.
func (h *Hierarchies) RemoveEmpty(cgroup string) (left bool, err error) {
	if err := own(cgroup); err != nil {
		return false, fmt.Errorf("remove cgroup %q: %w", cgroup, err)
	}
	for _, point := range h.all() {
		dir := filepath.Join(point, cgroup)
		switch rmdir := syscall.Rmdir(dir); {
		case rmdir == nil, gone(rmdir):
		case errors.Is(rmdir, syscall.EBUSY), errors.Is(rmdir, syscall.ENOTEMPTY):
			left = true
		default:
			err = errors.Join(err, &os.PathError{Op: "rmdir", Path: dir, Err: rmdir})
		}
	}
	return left, err
}

// removeTree removes children before parents; the kernel's files in a cgroup need no removal.
func removeTree(dir string) error {
	children, err := childDirs(dir)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := removeTree(filepath.Join(dir, child)); err != nil {
			return err
		}
	}
	if err := syscall.Rmdir(dir); err != nil && !gone(err) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// Kill sends SIGKILL to every process in the cgroup and below it, again and again until there is none: a process that
// forks faster than the list is read is caught in a later round. It ends with ctx, then with ErrBusy.
func (h *Hierarchies) Kill(ctx context.Context, cgroup string) error {
	if err := own(cgroup); err != nil {
		return fmt.Errorf("kill cgroup %q: %w", cgroup, err)
	}
	for pace := firstPace; ; pace = min(2*pace, lastPace) {
		pids, err := h.Pids(cgroup)
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", cgroup, err)
		}
		if len(pids) == 0 {
			return nil
		}
		if slices.Contains(pids, os.Getpid()) {
			return fmt.Errorf("kill cgroup %s: %w: this very process is in it", cgroup, ErrProtected)
		}
		if err := h.killRound(cgroup, pids); err != nil {
			return fmt.Errorf("kill cgroup %s: %w", cgroup, err)
		}
		if !sleep(ctx, pace) {
			return fmt.Errorf("kill cgroup %s: %w: processes %v survive SIGKILL: %w", cgroup, ErrBusy, pids, ctx.Err())
		}
	}
}

// killRound signals each process that is in the cgroup while it is held, so never one that got the pid of a
// process that ended since the list was read.
func (h *Hierarchies) killRound(cgroup string, pids []int) error {
	if h.unified != "" { // one write that no fork escapes; kernels before 5.14 have no such file
		err := writeFile(filepath.Join(h.unified, cgroup, "cgroup.kill"), "1")
		if err != nil && !gone(err) && !errors.Is(err, syscall.EOPNOTSUPP) {
			return err
		}
	}
	if h.mode == Unified {
		if _, err := os.Lstat(filepath.Join(h.unified, cgroup, "cgroup.kill")); err == nil {
			return nil
		}
	}
	for _, pid := range pids {
		_, err := pidfd.KillIf(pid, syscall.SIGKILL, func() bool { return inside(pid, cgroup) })
		if err != nil {
			return err
		}
	}
	return h.thaw(cgroup)
}

// thaw lets frozen processes run into their SIGKILL: the v1 freezer holds even that back.
func (h *Hierarchies) thaw(cgroup string) error {
	point, ok := h.controllers["freezer"]
	if !ok {
		return nil
	}
	return walk(filepath.Join(point, cgroup), func(dir string) error {
		state := filepath.Join(dir, "freezer.state")
		words, err := readWords(state)
		if err != nil || len(words) == 0 || words[0] == "THAWED" {
			return err
		}
		return writeFile(state, "THAWED")
	})
}

// inside tells whether the process is in the cgroup or below it, in any hierarchy.
func inside(pid int, cgroup string) bool {
	paths, err := proc.CgroupPaths(pid)
	if err != nil {
		return false
	}
	want := path.Clean("/" + cgroup)
	for _, have := range paths {
		if have == want || strings.HasPrefix(have, want+"/") {
			return true
		}
	}
	return false
}

// sleep waits, but not longer than ctx lives; it tells whether ctx still does.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
