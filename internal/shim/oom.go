// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// oomLedger tells whether the kernel has killed in a container for want of memory, though the container's cgroup may be gone: systemd removes
// a scope on cgroup v2 when its last process has exited, and can be quicker than the shim. The pod's cgroup stays, and on v2 its count includes what
// happened in cgroups that are gone; so what no other container accounts for was this one's. The zero value is ready.
type oomLedger struct {
	mu sync.Mutex
	// pod is the cgroup above the containers', as a folder; empty on v1, where counts do not include those below.
	pod string
	// settled are the kills below pod from before its first container, and those of containers that have ended.
	settled uint64
	running map[string]cgroup
}

// open is called before a container of the pod is started. All calls but the first are without effect.
func (l *oomLedger) open(pod string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if pod == "" || l.pod != "" {
		return nil
	}
	count, err := readOOMKills(filepath.Join(pod, "memory.events"))
	if errors.Is(err, fs.ErrNotExist) { // it is made with the container, or memory is not controlled
		count, err = 0, nil
	}
	if err != nil {
		return err
	}
	l.pod, l.settled = pod, count
	return nil
}

// begin is called when the container runs.
func (l *oomLedger) begin(id string, group cgroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil {
		l.running = make(map[string]cgroup)
	}
	l.running[id] = group
}

// end is called once when the container's init has ended, and returns how many processes were killed in the container.
func (l *oomLedger) end(id string, group cgroup) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.running, id)
	kills, err := group.oomKills()
	if err == nil && group.memory != "" {
		l.settled += kills
		return kills, nil
	}
	if l.pod == "" || err != nil && !cgroupGone(err) {
		return 0, err
	}
	total, err := readOOMKills(filepath.Join(l.pod, "memory.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	known := l.settled
	for _, other := range l.running {
		if n, err := other.oomKills(); err == nil { // an error: it has just gone, and will be asked for itself
			known += n
		}
	}
	if total <= known {
		return 0, nil
	}
	l.settled += total - known
	return total - known, nil
}

// cgroupGone tells that a cgroup was removed, before or while a file of it was open.
func cgroupGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

// oomKills returns how many processes the kernel has killed here for want of memory. fs.ErrNotExist or ENODEV: the cgroup is gone.
func (c cgroup) oomKills() (uint64, error) {
	if c.memory == "" {
		return 0, nil
	}
	kills, err := readOOMKills(filepath.Join(c.memory, "memory.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return readOOMKills(filepath.Join(c.memory, "memory.oom_control")) // cgroup v1
	}
	return kills, err
}

func readOOMKills(name string) (uint64, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("count OOM kills: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.ParseUint(strings.TrimSpace(count), 10, 64)
		}
	}
	return 0, fmt.Errorf("count OOM kills: no oom_kill in %s", name)
}
