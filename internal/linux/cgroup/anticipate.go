// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/berth-run/berth/internal/linux/proc"
)

// Anticipation spares whoever is about to move a process into a cgroup a part of the wait for it. The kernel keeps forks out
// while it moves a process, and the first move in a while waits until every CPU has heard of it, for an RCU grace period (8 to 25 ms on
// idle machines); moves that follow within some milliseconds do not wait (cgroup_threadgroup_rwsem in kernel/cgroup/cgroup.c). An OCI
// runtime comes to its move some 10 ms after its start: time enough for that wait, if somebody begins it at once.
//
// The move that begins it is of this very process into the cgroup that it is in, which changes nothing. The zero value is
// ready for use, and safe for concurrent use.
type Anticipation struct {
	mu  sync.Mutex // guards all below
	on  bool       // one at a time: more begin nothing that the first did not
	dir string     // the last one that this process was found to be in
}

// Begin starts the wait in the background and returns at once.
func (a *Anticipation) Begin(h *Hierarchies) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.on {
		return
	}
	a.on = true
	go func() {
		dir, err := a.moveSelf(h)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.on = false
		if err == nil { // otherwise the runtime waits itself, as ever
			a.dir = dir
		}
	}()
}

// moveSelf moves this process to where it is, in any hierarchy: they share the lock.
func (a *Anticipation) moveSelf(h *Hierarchies) (string, error) {
	key, point := h.anyHierarchy()
	paths, err := proc.CgroupPaths(os.Getpid())
	if err != nil {
		return "", err
	}
	path, ok := paths[key]
	if !ok {
		return "", fmt.Errorf("this process has no cgroup %q", key)
	}
	dir := filepath.Join(point, path)
	a.mu.Lock()
	known := a.dir == dir
	a.mu.Unlock()
	// What is mounted need not begin where the namespace of /proc/self/cgroup does: then it would be another cgroup, and a true move.
	if !known {
		pids, err := readPids(dir)
		if err != nil {
			return "", err
		}
		if !slices.Contains(pids, os.Getpid()) {
			return "", fmt.Errorf("this process is not in cgroup %s", dir)
		}
	}
	err = writeFile(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(os.Getpid()))
	if refusedController(err) { // a v2 cgroup that has controllers for its children takes no processes, and says so after the wait
		err = nil
	}
	return dir, err
}

// anyHierarchy is one that can be written to, by its key in /proc/self/cgroup and where it is mounted.
func (h *Hierarchies) anyHierarchy() (key, point string) {
	if h.unified != "" {
		return "", h.unified
	}
	key = slices.Sorted(maps.Keys(h.controllers))[0] // there is one, or Detect has failed
	return key, h.controllers[key]
}
