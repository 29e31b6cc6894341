// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
)

// Stopped tells whether all threads of the process stand still: stopped by a signal, or by a tracer. One that sleeps in the kernel, be it in the
// middle of a fork, does not stand still, and neither does a process of which only the first thread does. After true it starts neither processes
// nor threads until somebody lets it go on; whoever is gone counts as stopped.
func (s Stat) Stopped() (bool, error) {
	if s.Threads <= 1 {
		return stopped(s.State), nil
	}
	base := "/proc/" + strconv.Itoa(s.PID) + "/task/"
	threads, err := os.ReadDir(base)
	if gone(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for _, thread := range threads {
		// A thread that comes to be meanwhile joins the stop before it begins to run, as the kernel has it.
		stat, err := readStat(base + thread.Name() + "/stat")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		if !stopped(stat.State) {
			return false, nil
		}
	}
	return true, nil
}

// stopped knows the states of what stands still: stopped, traced, ended, being reaped.
func stopped(state byte) bool {
	return state == 'T' || state == 't' || state == 'Z' || state == 'X'
}
