// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Children returns the pids of the process's children, those of all its threads. A process that is gone
// has none.
func Children(pid int) ([]int, error) {
	base := "/proc/" + strconv.Itoa(pid) + "/task"
	threads, err := os.ReadDir(base)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list threads of process %d: %w", pid, err)
	}
	var children []int
	for _, thread := range threads {
		if children, err = appendChildren(children, pid, base+"/"+thread.Name()); err != nil {
			return nil, err
		}
	}
	return children, nil
}

// Children is the function of that name for a process that has been looked at: for most of them it asks one thread, and does not look for others.
func (s Stat) Children() ([]int, error) {
	if s.Threads > 1 {
		return Children(s.PID)
	}
	pid := strconv.Itoa(s.PID)
	return appendChildren(nil, s.PID, "/proc/"+pid+"/task/"+pid)
}

func appendChildren(children []int, pid int, thread string) ([]int, error) {
	data, err := os.ReadFile(thread + "/children")
	if gone(err) {
		return children, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list children of process %d: %w", pid, err)
	}
	for _, field := range strings.Fields(string(data)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("list children of process %d: %w", pid, err)
		}
		children = append(children, child)
	}
	return children, nil
}
