// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// Process is one process of the machine.
type Process struct {
	PID, Parent int
	State       byte
	Command     string
}

func (p Process) String() string { return fmt.Sprintf("%d %c %s", p.PID, p.State, p.Command) }

// Processes lists those that belong to the scope, without the daemon and the caller.
func (s Scope) Processes() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == s.Daemon {
			continue
		}
		if p, ok := s.mine(pid); ok {
			found = append(found, p)
		}
	}
	return found, nil
}

// mine tells whether a process belongs to the scope: child of the daemon, or named after the folder by its
// arguments, root, working folder, program or cgroup. A process that ends meanwhile is none of them.
func (s Scope) mine(pid int) (Process, bool) {
	dir := fmt.Sprintf("/proc/%d", pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Process{}, false
	}
	name, rest, ok := cutStat(stat)
	if !ok {
		return Process{}, false
	}
	cmdline, _ := os.ReadFile(dir + "/cmdline")
	p := Process{PID: pid, State: rest[0][0], Command: strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))}
	p.Parent, _ = strconv.Atoi(rest[1])
	if p.Command == "" {
		p.Command = "[" + name + "]"
	}
	if s.Daemon != 0 && p.Parent == s.Daemon {
		return p, true
	}
	if p.State == 'Z' {
		return p, false // somebody else's to reap: PID 1 takes two seconds
	}
	traces := []string{p.Command}
	for _, l := range []string{"exe", "cwd", "root"} {
		to, _ := os.Readlink(dir + "/" + l)
		traces = append(traces, to)
	}
	for _, t := range traces {
		if s.Dir != "" && strings.Contains(t, s.Dir) {
			return p, true
		}
	}
	cgroup, _ := os.ReadFile(dir + "/cgroup")
	return p, s.Cgroup != "" && bytes.Contains(cgroup, []byte("/"+s.Cgroup))
}

// cutStat splits /proc/PID/stat into the name and the fields from the state on.
func cutStat(stat []byte) (name string, fields []string, ok bool) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", nil, false
	}
	fields = strings.Fields(string(stat[end+1:]))
	return string(stat[open+1 : end]), fields, len(fields) > 20
}

func (s Scope) processes(found Snapshot) error {
	all, err := s.Processes()
	for _, p := range all {
		found.add("process", p.String())
	}
	return err
}

var number = regexp.MustCompile(`[0-9]+`)

// descriptors counts the daemon's open files by what they are, so that one more of a kind shows. TCP
// sockets are left out: a registry's client keeps idle connections.
func (s Scope) descriptors(found Snapshot) error {
	if s.Daemon == 0 || !s.Descriptors {
		return nil
	}
	unix, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return fmt.Errorf("list unix sockets: %w", err)
	}
	dir := fmt.Sprintf("/proc/%d/fd", s.Daemon)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	kinds := map[string]int{}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		kind := to
		if inode := strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]"); inode != to && !bytes.Contains(unix, []byte(" "+inode)) {
			continue
		}
		if !strings.HasPrefix(to, "/") {
			kind = number.ReplaceAllString(to, "N") // socket:[123]
		}
		kinds[kind]++
		found.add("descriptor", fmt.Sprintf("%s #%d", kind, kinds[kind]))
	}
	return nil
}

// killAll ends the scope's processes, those of its cgroups too.
func (s Scope) killAll() error {
	for range 20 {
		all, err := s.Processes()
		if err != nil || len(all) == 0 {
			return err
		}
		for _, p := range all {
			syscall.Kill(p.PID, syscall.SIGKILL)
		}
		settleBriefly()
	}
	return nil
}
