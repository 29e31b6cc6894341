// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

// TestIdleMemory holds what a pod with three idle containers costs: memory of its shim's own (PSS, as twenty pods on
// a node share the program's pages) and no CPU time at all.
func TestIdleMemory(t *testing.T) {
	if os.Getenv("BERTH_TEST_SHIM_RACE") != "" {
		t.Log("with the race detector the figures mean nothing")
		return
	}
	// In kB. What a node pays is their sum; a single shim may have an arena page more than the others. Of the 1000 to 1035 that
	// are measured, some 170 are pages of the program, which twenty share here: with a hundred pods it is 800.
	const pods, containers, limit, limitOfOne = 20, 3, 1100, 1360
	shims := make([]*testShim, pods)
	for i := range shims {
		shims[i] = startShim(t)
		for range containers {
			id := shims[i].run(testContainer{args: []string{"sleep", "1000"}})
			go shims[i].task.Wait(shims[i].ctx, &taskpb.WaitRequest{Id: id}) // as the daemon does
		}
	}
	time.Sleep(idleAfter + time.Second)
	sizes := make([]int, pods)
	for i, s := range shims {
		sizes[i] = s.rollup("Pss")
	}
	s := shims[0]
	t.Logf("PSS %v kB; private dirty %d kB, RSS %d kB", sizes, s.rollup("Private_Dirty"), s.rollup("Rss"))
	sum := 0
	for _, size := range sizes {
		sum += size
	}
	if sum > pods*limit {
		t.Errorf("shims have a PSS of %d kB each, more than %d", sum/pods, limit)
	}
	if largest := slices.Max(sizes); largest > limitOfOne {
		t.Errorf("a shim has a PSS of %d kB, more than %d", largest, limitOfOne)
	}
	// On a busy machine one of them may come to rest late; then all must stay at rest.
	var busy []string
	for range 5 {
		before := make([]string, pods)
		for i, s := range shims {
			before[i] = s.cpuTicks()
		}
		time.Sleep(3 * time.Second)
		busy = nil
		for i, s := range shims {
			if now := s.cpuTicks(); now != before[i] {
				busy = append(busy, before[i]+" → "+now)
			}
		}
		if len(busy) == 0 {
			return
		}
	}
	t.Errorf("idle shims use CPU time (ticks): %v", busy)
}

// rollup reads a figure in kB.
func (s *testShim) rollup(name string) int {
	s.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.cmd.Process.Pid))
	if err != nil {
		s.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var size int
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			if _, err := fmt.Sscan(value, &size); err != nil {
				s.Fatal(err)
			}
			return size
		}
	}
	s.Fatalf("no %s", name)
	return 0
}

// cpuTicks are the fields utime and stime of /proc/PID/stat.
func (s *testShim) cpuTicks() string {
	s.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		s.Fatal(err)
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	return fields[11] + "+" + fields[12]
}
