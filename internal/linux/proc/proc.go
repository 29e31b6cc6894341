// SPDX-License-Identifier: Apache-2.0

// Package proc reads what /proc tells about processes and cgroup mounts. It keeps nothing open and
// nothing cached; what it returns may be stale by the time that it is looked at.
package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Stat is the part of /proc/PID/stat that tells processes apart and how they hang together.
type Stat struct {
	PID     int
	Comm    string
	State   byte // R, S, D, Z, …
	PPID    int
	Group   int
	Session int
	// Threads is field 20, how many threads live; with a leader that waits to be reaped it still counts as one.
	Threads int
	// StartTime is field 22: clock ticks from boot to the start of the process. With the pid it names
	// a process for as long as the machine runs.
	StartTime uint64
	// Ending tells that the process, or at least its first thread, exits (PF_EXITING in field 9) or has a SIGKILL to take (field 31).
	Ending bool
}

const flagExiting = 0x4 // PF_EXITING

// Ended tells that the process only waits to be reaped, if that. The state alone does not say so: it is that of
// the first thread, and a zombie while the others go on where that one ended before them.
func (s Stat) Ended() bool { return (s.State == 'Z' || s.State == 'X') && s.Threads <= 1 }

// ReadStat reads /proc/PID/stat; fs.ErrNotExist if there is no such process. It allocates nothing that stays.
func ReadStat(pid int) (Stat, error) {
	stat, err := readStat("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, fmt.Errorf("read stat of process %d: %w", pid, err)
	}
	return stat, nil
}

func readStat(name string) (Stat, error) {
	var buffer [1024]byte // the kernel writes less than 500 bytes
	n, err := readSmall(name, buffer[:])
	if err != nil {
		return Stat{}, err
	}
	return parseStat(buffer[:n])
}

// readSmall fills buffer from the file's start.
func readSmall(name string, buffer []byte) (int, error) {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err == nil {
		defer syscall.Close(fd)
		var n int
		for n, err = syscall.Read(fd, buffer); err == syscall.EINTR; {
			n, err = syscall.Read(fd, buffer)
		}
		if err == nil {
			return n, nil
		}
	}
	if err == syscall.ESRCH { // it ended between open and read
		err = syscall.ENOENT
	}
	return 0, &fs.PathError{Op: "read", Path: name, Err: err}
}

// parseStat looks for the last parenthesis: the name between the first and the last may hold spaces,
// newlines and parentheses of its own.
func parseStat(data []byte) (Stat, error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 1 || end < open {
		return Stat{}, fmt.Errorf("no process name in %q", data)
	}
	stat := Stat{Comm: string(data[open+1 : end])}
	var err error
	if stat.PID, err = strconv.Atoi(string(bytes.TrimSpace(data[:open]))); err != nil {
		return Stat{}, fmt.Errorf("pid: %w", err)
	}
	number := 3 // of the first field after the name
	for field := range bytes.FieldsSeq(data[end+1:]) {
		switch number {
		case 3:
			stat.State = field[0]
		case 4:
			stat.PPID, err = strconv.Atoi(string(field))
		case 5:
			stat.Group, err = strconv.Atoi(string(field))
		case 6:
			stat.Session, err = strconv.Atoi(string(field))
		case 9:
			var flags uint64
			flags, err = strconv.ParseUint(string(field), 10, 64)
			stat.Ending = flags&flagExiting != 0
		case 20:
			stat.Threads, err = strconv.Atoi(string(field))
		case 22:
			stat.StartTime, err = strconv.ParseUint(string(field), 10, 64)
		case 31:
			var pending uint64
			pending, err = strconv.ParseUint(string(field), 10, 64)
			stat.Ending = stat.Ending || pending&(1<<(syscall.SIGKILL-1)) != 0
		}
		if err != nil {
			return Stat{}, fmt.Errorf("field %d: %w", number, err)
		}
		if number++; number > 31 {
			return stat, nil
		}
	}
	return Stat{}, fmt.Errorf("ends before field %d", number)
}

// Is tells whether the pid still belongs to the process that started at startTime and has not ended.
func Is(pid int, startTime uint64) bool {
	stat, err := ReadStat(pid)
	return err == nil && stat.StartTime == startTime && !stat.Ended()
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// CgroupPaths returns the cgroup of the process in each hierarchy: by v1 controller (or "name=…"), and by
// "" for the unified one.
func CgroupPaths(pid int) (map[string]string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read cgroups of process %d: %w", pid, err)
	}
	paths := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			return nil, fmt.Errorf("read cgroups of process %d: line %q", pid, line)
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			paths[controller] = parts[2]
		}
	}
	return paths, nil
}

// CgroupMounts returns where each cgroup hierarchy is mounted, with the keys of CgroupPaths.
func CgroupMounts() (map[string]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroup mounts: %w", err)
	}
	defer file.Close()
	mounts := make(map[string]string)
	lines := bufio.NewReader(file)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull): // no cgroup mount's line is that long
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = lines.ReadSlice('\n')
			}
		case bytes.Contains(line, []byte(" - cgroup")): // most lines are of other mounts: no string is made of them
			addCgroupMount(mounts, string(line))
		}
		if errors.Is(err, io.EOF) {
			return mounts, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list cgroup mounts: %w", err)
		}
	}
}

// addCgroupMount reads one line of mountinfo: ID parent major:minor root point options … - type source super.
func addCgroupMount(mounts map[string]string, line string) {
	mount, super, ok := strings.Cut(line, " - ")
	left, right := strings.Fields(mount), strings.Fields(super)
	if !ok || len(left) < 5 || len(right) < 3 {
		return
	}
	var keys []string
	switch right[0] {
	case "cgroup2":
		keys = []string{""}
	case "cgroup":
		keys = strings.Split(right[2], ",")
	}
	for _, key := range keys {
		if _, found := mounts[key]; !found { // the first mount of a hierarchy is the one that others use
			mounts[key] = left[4]
		}
	}
}
