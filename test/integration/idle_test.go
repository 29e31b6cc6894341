// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// idlePods is how many pods are at rest; BERTH_TEST_IDLE_PODS has more.
const idlePods = 5

// TestAnIdleNodeDoesNothing counts how often the daemon and the shims wake up when nobody asks. A timer that was left behind (every answer's time limit,
// say) wakes up each shim some thirty times when it runs out; one that ticks does so for ever.
func TestAnIdleNodeDoesNothing(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	n := idlePods
	if more := os.Getenv("BERTH_TEST_IDLE_PODS"); more != "" {
		var err error
		if n, err = strconv.Atoi(more); err != nil {
			t.Fatal(err)
		}
	}
	for p := range n {
		k.RunPod(k.PodConfig(fmt.Sprint("p", p))).Start(k.Forever("main"))
	}
	var shims []int
	found, err := k.D.Scope().Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		if strings.HasPrefix(p.Command, "berth-shim serve") {
			shims = append(shims, p.PID)
		}
	}
	equal(t, "shims", len(shims), n)
	ofShims := func() (n int64) {
		for _, pid := range shims {
			n += switches(t, pid)
		}
		return n
	}
	// The start has its consequences, which take as long as the machine is slow.
	kubelet.Eventually(t, time.Minute, func() string {
		before := ofShims()
		time.Sleep(time.Second)
		if n := ofShims() - before; n > 0 {
			return fmt.Sprintf("the shims woke up %d times in a second", n)
		}
		return ""
	})
	const while = 12 * time.Second // no limit of a shim's is longer than ten
	shimsBefore, daemonBefore, cpuBefore := ofShims(), switches(t, k.D.PID()), cpuOf(t, append(shims, k.D.PID())...)
	time.Sleep(while)
	ofTheShims, ofTheDaemon := ofShims()-shimsBefore, switches(t, k.D.PID())-daemonBefore
	cpu := cpuOf(t, append(shims, k.D.PID())...) - cpuBefore
	t.Logf("%d pods in %s: the shims woke up %d times, the daemon %d times; %s of CPU", n, while, ofTheShims, ofTheDaemon, cpu)
	if ofTheShims > int64(10*n) {
		t.Errorf("nobody asks, and %d shims wake up %d times in %s", n, ofTheShims, while)
	}
	if ofTheDaemon > int64(100+10*n) {
		t.Errorf("nobody asks, and the daemon wakes up %d times in %s", ofTheDaemon, while)
	}
}

// threads reads one file of each of a process's threads.
func threads(t *testing.T, pid int, file string, read func(string)) {
	t.Helper()
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", pid, file))
	if err != nil || len(all) == 0 {
		t.Fatalf("process %d has no threads, %v", pid, err)
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		switch {
		case err == nil:
			read(string(text))
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH): // a thread that has ended
			t.Fatal(err)
		}
	}
}

// switches is how often a process's threads have gone to sleep.
func switches(t *testing.T, pid int) (n int64) {
	t.Helper()
	threads(t, pid, "status", func(text string) {
		_, after, _ := strings.Cut(text, "\nvoluntary_ctxt_switches:")
		value, _, _ := strings.Cut(after, "\n")
		one, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		n += one
	})
	return n
}

// cpuOf is the CPU time of processes, in nanoseconds where cpuTime has ticks; 0 where the kernel does not tell (CONFIG_SCHED_INFO).
func cpuOf(t *testing.T, pids ...int) (sum time.Duration) {
	t.Helper()
	for _, pid := range pids {
		threads(t, pid, "schedstat", func(text string) {
			value, _, _ := strings.Cut(text, " ")
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += time.Duration(n)
		})
	}
	return sum
}
