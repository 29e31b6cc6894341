// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/pidfd"
	"github.com/berth-run/berth/internal/linux/proc"
)

// killLimit bounds how long dying processes are waited for.
const killLimit = 5 * time.Second

// maxCgroupProcs bounds how many processes of a container are looked at in one pass.
const maxCgroupProcs = 1 << 16

// cgroup is a container's own cgroup, as folders. It is found while the container runs and remembered,
// since a dead init has none.
type cgroup struct {
	procs  string // the hierarchy by which processes are listed; empty: unknown
	memory string // the hierarchy that counts OOM kills; empty: unknown
}

var (
	cgroupMounts = sync.OnceValues(proc.CgroupMounts)
	ownCgroups   = sync.OnceValues(func() (map[string]string, error) { return proc.CgroupPaths(os.Getpid()) })
)

// findCgroup looks where the spec puts the container; a container whose spec does not say is looked
// up by its init.
func findCgroup(cgroupsPath string, systemd bool, pid int) (cgroup, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return cgroup{}, err
	}
	own, err := ownCgroups()
	if err != nil {
		return cgroup{}, err
	}
	wanted := specCgroup(cgroupsPath, systemd)
	locate := func(keys ...string) string {
		for _, key := range keys {
			mount, ok := mounts[key]
			if !ok {
				continue
			}
			path := wanted
			if path == "" || !isDir(mount+path) {
				paths, _ := proc.CgroupPaths(pid) // an error: it has ended, and there is nothing to find
				path = paths[key]
			}
			if path != "" && !holds(path, own[key]) && isDir(mount+path) {
				return mount + path
			}
		}
		return ""
	}
	return cgroup{procs: locate("pids", "freezer", "memory", "name=systemd", ""), memory: locate("memory", "")}, nil
}

// holds tells that the cgroup is ours or above ours: then it is not a container's own, and must not be
// killed.
func holds(path, own string) bool {
	return path == "/" || path == own || strings.HasPrefix(own, strings.TrimSuffix(path, "/")+"/")
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// specCgroup turns the spec's linux.cgroupsPath into the path under each hierarchy: an absolute path is taken
// as it is, "slice:prefix:name" is systemd's unit prefix-name.scope in the nested folders of the slice.
func specCgroup(cgroupsPath string, systemd bool) string {
	if !systemd {
		if !filepath.IsAbs(cgroupsPath) {
			return ""
		}
		return filepath.Clean(cgroupsPath)
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 || parts[2] == "" {
		return ""
	}
	slice, unit := parts[0], parts[2]
	if slice == "" {
		slice = "system.slice"
	}
	if !strings.HasSuffix(unit, ".slice") {
		unit += ".scope"
		if parts[1] != "" {
			unit = parts[1] + "-" + unit
		}
	}
	path := "/"
	if name := strings.TrimSuffix(slice, ".slice"); name != "-" {
		prefix := ""
		for part := range strings.SplitSeq(name, "-") {
			path = filepath.Join(path, prefix+part+".slice")
			prefix += part + "-"
		}
	}
	return filepath.Join(path, unit)
}

// podCgroup is the folder of the cgroup that holds the container's, on v2; empty on v1.
func podCgroup(cgroupsPath string, systemd bool) (string, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return "", err
	}
	path := specCgroup(cgroupsPath, systemd)
	if _, v1 := mounts["memory"]; v1 || path == "" || filepath.Dir(path) == "/" {
		return "", nil
	}
	return mounts[""] + filepath.Dir(path), nil
}

// removeCgroups removes the empty cgroup of this path from every hierarchy.
func removeCgroups(path string) error {
	mounts, err := cgroupMounts()
	if err != nil || path == "" {
		return err
	}
	var failures []error
	for _, mount := range mounts {
		err := syscall.Rmdir(mount + path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failures = append(failures, fmt.Errorf("remove cgroup: %w", &fs.PathError{Op: "rmdir", Path: mount + path, Err: err}))
		}
	}
	return errors.Join(failures...)
}

// pids lists the processes of the cgroup and of those below it. A cgroup that is gone has none.
func (c cgroup) pids() ([]int, error) {
	if c.procs == "" {
		return nil, nil
	}
	var pids []int
	err := filepath.WalkDir(c.procs, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !entry.IsDir():
			return nil
		}
		pids, err = appendPIDs(pids, filepath.Join(path, "cgroup.procs"))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup: %w", err)
	}
	return pids, nil
}

func appendPIDs(pids []int, file string) ([]int, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return pids, nil
	}
	if err != nil {
		return pids, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			return pids, fmt.Errorf("%s: %w", file, err)
		}
		if pid <= 0 { // of a PID namespace that we do not see
			continue
		}
		if len(pids) >= maxCgroupProcs {
			return pids, fmt.Errorf("%s: more than %d processes", file, maxCgroupProcs)
		}
		pids = append(pids, pid)
	}
	if err := lines.Err(); err != nil && !errors.Is(err, syscall.ENODEV) { // the cgroup was removed meanwhile
		return pids, err
	}
	return pids, nil
}

// processes returns the live processes of the cgroup.
func (c cgroup) processes() ([]proc.Stat, error) {
	pids, err := c.pids()
	if err != nil {
		return nil, err
	}
	var live []proc.Stat
	for _, pid := range pids {
		if stat, err := proc.ReadStat(pid); err == nil && !stat.Ended() { // an error: it has ended
			live = append(live, stat)
		}
	}
	return live, nil
}

// signalAll sends sig to every process once and returns how many there were.
func (c cgroup) signalAll(sig syscall.Signal) (int, error) {
	live, err := c.processes()
	if err != nil {
		return 0, err
	}
	return len(live), signalEach(live, sig)
}

func signalEach(processes []proc.Stat, sig syscall.Signal) error {
	var failures []error
	for _, p := range processes {
		_, err := pidfd.KillIf(p.PID, sig, func() bool { return proc.Is(p.PID, p.StartTime) })
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// killAll kills until nothing is left: while it looks, processes may still fork.
func (c cgroup) killAll(limit time.Duration) error {
	return untilNone(limit, func() (int, error) { return c.signalAll(syscall.SIGKILL) })
}

// untilNone calls kill until it finds nothing more to kill.
func untilNone(limit time.Duration, kill func() (int, error)) error {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		left, err := kill()
		if left == 0 && err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%d processes are still alive %v after SIGKILL", left, limit), err)
		}
		time.Sleep(pause)
	}
}
