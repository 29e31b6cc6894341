// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// BenchmarkLists asks for lists of many pods at rest, one container each. BERTH_BENCH_PODS is how many (100). BERTH_BENCH_PROGRAMS compares
// daemons, "old=/path/berth,new=bin/berth", each with the same pods, in BERTH_BENCH_ROUNDS turns (1). BERTH_BENCH_PROFILE is a folder for CPU profiles.
//
//	go test -run '^$' -bench Lists -benchtime 100x ./test/integration
func BenchmarkLists(b *testing.B) {
	socket, config := endpoint(b)
	d := daemon.Start(b, daemon.Spec{Config: config})
	k := &kubelet.Kubelet{T: b, D: d}
	if err := d.WaitNetwork(k.Ctx(), true); err != nil {
		b.Fatal(err)
	}
	k.Image = k.Pull(busyboxRef)
	for p := range benchSize(b, "BERTH_BENCH_PODS", 100) {
		k.RunPod(k.PodConfig(fmt.Sprint("p", p))).Start(k.Forever("main"))
	}
	programs := strings.Split(cmp.Or(os.Getenv("BERTH_BENCH_PROGRAMS"), "berth="), ",")
	for round := range benchSize(b, "BERTH_BENCH_ROUNDS", 1) {
		for _, program := range programs {
			name, path, _ := strings.Cut(program, "=")
			d.Spec.Program = path
			for call, ask := range benchCalls(d) {
				if err := d.Restart(b.Context()); err != nil {
					b.Fatal(err)
				}
				time.Sleep(time.Second) // what a recovery does afterwards
				b.Run(fmt.Sprintf("%s/%s/%d", call, name, round+1), func(b *testing.B) { benchCall(b, socket, d.PID(), ask) })
			}
		}
	}
}

func benchSize(b *testing.B, variable string, otherwise int) int {
	b.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv(variable), strconv.Itoa(otherwise)))
	if err != nil {
		b.Fatalf("%s: %v", variable, err)
	}
	return n
}

func benchCalls(d *daemon.Daemon) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"ListContainerStats": func(ctx context.Context) error {
			_, err := d.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return err
		},
		"ListPodSandboxStats": func(ctx context.Context) error {
			_, err := d.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return err
		},
		"ListPodSandboxMetrics": func(ctx context.Context) error {
			_, err := d.Runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
			return err
		},
	}
}

// benchCall measures the daemon's first answer, which opens files, apart from the others.
func benchCall(b *testing.B, socket string, pid int, ask func(context.Context) error) {
	timed := func() time.Duration {
		begin := time.Now()
		if err := ask(b.Context()); err != nil {
			b.Fatal(err)
		}
		return time.Since(begin)
	}
	first := timed()
	done := benchProfile(b, socket)
	var took []time.Duration
	before := benchCPU(b, pid)
	for b.Loop() {
		took = append(took, timed())
	}
	used := benchCPU(b, pid) - before
	done()
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*95/100]), "p95-ms")
	b.ReportMetric(ms(first), "first-ms")
	b.ReportMetric(ms(used)/float64(len(took)), "cpu-ms/op")
	b.ReportMetric(float64(len(fds)), "fds")
	b.ReportMetric(float64(benchMemory(b, pid))/1024, "rss-MB")
	b.ReportMetric(0, "ns/op")
}

// benchCPU is what all threads of a process have used, by the scheduler's own count.
func benchCPU(b *testing.B, pid int) (sum time.Duration) {
	b.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range tasks {
		var ns int64
		if data, err := os.ReadFile(path); err == nil { // else the thread has just ended
			if _, err := fmt.Sscan(string(data), &ns); err != nil {
				b.Fatal(err)
			}
		}
		sum += time.Duration(ns)
	}
	return sum
}

// benchMemory is a process's resident memory in KiB.
func benchMemory(b *testing.B, pid int) (kib int64) {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				b.Fatal(err)
			}
		}
	}
	return kib
}

// benchProfile has the daemon write a CPU profile of the next seconds, if one is asked for.
func benchProfile(b *testing.B, socket string) (done func()) {
	b.Helper()
	dir := os.Getenv("BERTH_BENCH_PROFILE")
	if dir == "" {
		return func() {}
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	ended := make(chan error, 1)
	go func() {
		r, err := client.Get("http://berth/debug/pprof/profile?seconds=3")
		if err != nil {
			ended <- err
			return
		}
		defer r.Body.Close()
		f, err := os.Create(filepath.Join(dir, strings.ReplaceAll(b.Name(), "/", "-")+".pprof"))
		if err == nil {
			_, err = io.Copy(f, r.Body)
			f.Close()
		}
		ended <- err
	}()
	return func() {
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	}
}
