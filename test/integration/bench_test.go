// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
)

// TestStatisticsOfAHundredContainersAreQuick measures; the bound is generous for slow machines, the figure is in the log.
func TestStatisticsOfAHundredContainersAreQuick(t *testing.T) {
	berthOnly(t)
	k := node(t, daemon.Spec{})
	for p := range 10 {
		pod := k.RunPod(k.PodConfig(fmt.Sprint("p", p)))
		for c := range 10 {
			pod.Start(k.Forever(fmt.Sprint("c", c)))
		}
	}
	measure := func(what string, ask func() (int, error)) time.Duration {
		var took []time.Duration
		for range 30 {
			begin := time.Now()
			n, err := ask()
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				t.Fatalf("%s: nothing", what)
			}
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		t.Logf("%s: p50 %s, p95 %s", what, took[len(took)/2], took[len(took)*95/100])
		return took[len(took)/2]
	}
	containers := measure("ListContainerStats", func() (int, error) {
		r, err := k.D.Runtime.ListContainerStats(k.Ctx(), &cri.ListContainerStatsRequest{})
		return len(r.GetStats()), err
	})
	measure("ListPodSandboxStats", func() (int, error) {
		r, err := k.D.Runtime.ListPodSandboxStats(k.Ctx(), &cri.ListPodSandboxStatsRequest{})
		return len(r.GetStats()), err
	})
	measure("ListPodSandboxMetrics", func() (int, error) {
		r, err := k.D.Runtime.ListPodSandboxMetrics(k.Ctx(), &cri.ListPodSandboxMetricsRequest{})
		return len(r.GetPodMetrics()), err
	})
	if containers > 250*time.Millisecond { // 5 ms is the aim on a quiet machine
		t.Errorf("ListContainerStats took %s", containers)
	}
	if idle := cpuTime(t, k.D.PID(), 3*time.Second); idle > 100*time.Millisecond {
		t.Errorf("nobody asks, and the daemon takes %s of CPU in 3 s", idle)
	}
}

// cpuTime is what a process uses in a while.
func cpuTime(t *testing.T, pid int, while time.Duration) time.Duration {
	t.Helper()
	read := func() (ticks int64) {
		var user, system int64
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:])) // the third field and on
		if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
			t.Fatal(err)
		}
		return user + system
	}
	before := read()
	time.Sleep(while)
	took := time.Duration(read()-before) * 10 * time.Millisecond
	t.Logf("idle: %s of CPU in %s", took, while)
	return took
}
