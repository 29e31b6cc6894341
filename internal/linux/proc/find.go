// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// maxCommandLine bounds what is read of a command line: a longer one is nobody's that is looked for.
const maxCommandLine = 128 << 10

// ID names a process for as long as the machine runs: never a later one that has got its pid.
type ID struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
}

// Runs tells whether the process has not ended.
func (p ID) Runs() bool { return Is(p.PID, p.StartTime) }

// Identify returns the process that has the pid now; false if there is none that has not ended.
func Identify(pid int) (ID, bool) {
	stat, err := ReadStat(pid)
	return ID{pid, stat.StartTime}, err == nil && !stat.Ended()
}

// Find returns the processes of this process's user, itself left out, whose command line matches. Those of others are not asked: a container's
// process can call itself what it likes.
func Find(match func(args []string) bool) ([]ID, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []ID
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		id, ok := Identify(pid)
		if !ok {
			continue // gone meanwhile
		}
		if info, err := entry.Info(); err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			continue
		}
		if args := commandLine(pid); len(args) > 0 && match(args) {
			found = append(found, id)
		}
	}
	return found, nil
}

// commandLine returns nothing for a process that has none, or is gone.
func commandLine(pid int) []string {
	file, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return nil
	}
	defer file.Close()
	line, err := io.ReadAll(io.LimitReader(file, maxCommandLine+1))
	if err != nil || len(line) == 0 || len(line) > maxCommandLine {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
}
