// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents tells of every pod and container, then of one that goes.
func (f *fakeCRI) GetContainerEvents(_ *runtimeapi.GetEventsRequest, to grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	f.mu.Lock()
	var all []*runtimeapi.ContainerEventResponse
	for _, p := range f.pods {
		st := &runtimeapi.PodSandboxStatus{Id: p.Id, Metadata: p.Metadata}
		all = append(all, &runtimeapi.ContainerEventResponse{ContainerId: p.Id, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, CreatedAt: 1, PodSandboxStatus: st})
		for _, c := range f.containers {
			if f.podOf[c.Id] == p.Id {
				kind := runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
				if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
					kind = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
				}
				all = append(all, &runtimeapi.ContainerEventResponse{ContainerId: c.Id, ContainerEventType: kind, CreatedAt: 2, PodSandboxStatus: st,
					ContainersStatuses: []*runtimeapi.ContainerStatus{{Id: c.Id, Metadata: c.Metadata, State: c.State, ExitCode: 3, Reason: "Error"}}})
			}
		}
	}
	ends := f.ends
	f.mu.Unlock()
	for _, e := range all {
		if err := to.Send(e); err != nil {
			return err
		}
	}
	if ends {
		return status.Error(codes.Unavailable, "the daemon is shutting down; subscribe again")
	}
	<-to.Context().Done()
	return to.Context().Err()
}

func TestEventsSoFarAreShown(t *testing.T) {
	f := populated(t)
	got := f.berth(t, "events")
	if got.code != 0 || strings.Count(got.out, "\n") != len(f.pods)+len(f.containers) {
		t.Fatalf("got %+v", got)
	}
	for _, want := range []string{`(?m)^1970-01-01T00:00:00\.000000Z pod       started b1\w+ default/front$`, `(?m) container started d100000000000 default/front web$`,
		`(?m) container stopped d\w+ default/\w+ side exit=3 reason=Error$`} {
		if !regexp.MustCompile(want).MatchString(got.out) {
			t.Errorf("no line is like %s:\n%s", want, got.out)
		}
	}
	got = f.berth(t, "events", "-o", "json")
	for line := range strings.Lines(got.out) {
		var e struct{ ContainerID, ContainerEventType string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.ContainerID == "" {
			t.Errorf("%s: %v", line, err)
		}
	}
	if got := f.berth(t, "events", "-o", "yaml"); got.code != 1 || !strings.Contains(got.err, "not one of table, json") {
		t.Errorf("got %+v", got)
	}
}

func TestFollowedEventsEndWithAnInterruptOrTheDaemon(t *testing.T) {
	f := populated(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	if got := berthIn(ctx, "", "--socket", f.socket, "events", "-f"); got.code != 0 || !strings.Contains(got.out, "default/front web") {
		t.Errorf("got %+v", got)
	}
	f.mu.Lock()
	f.ends = true
	f.mu.Unlock()
	if got := f.berth(t, "events", "-f"); got.code != 1 || !strings.Contains(got.err, "subscribe again") {
		t.Errorf("got %+v", got)
	}
}

func (f *fakeCRI) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	number := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
	out := &runtimeapi.ListPodSandboxStatsResponse{}
	for i, p := range f.pods {
		n := uint64(i + 1)
		s := &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{Id: p.Id, Metadata: p.Metadata}, Linux: &runtimeapi.LinuxPodSandboxStats{
			Network: &runtimeapi.NetworkUsage{Timestamp: f.looks * 1e9, DefaultInterface: &runtimeapi.NetworkInterfaceUsage{Name: "eth0",
				RxBytes: number(uint64(f.looks) * 1000 * n), TxBytes: number(uint64(f.looks) * 2000)}}}}
		for j, c := range f.containers {
			if f.podOf[c.Id] == p.Id {
				s.Linux.Containers = append(s.Linux.Containers, &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: c.Id, Metadata: c.Metadata},
					Cpu:    &runtimeapi.CpuUsage{Timestamp: f.looks * 1e9, UsageCoreNanoSeconds: number(uint64(f.looks) * 1e8 * uint64(j+1))},
					Memory: &runtimeapi.MemoryUsage{WorkingSetBytes: number(uint64(10-j) << 20), AvailableBytes: number(54 << 20)}})
			}
		}
		out.Stats = append(out.Stats, s)
	}
	return out, nil
}

// inOrder compares rows of a table by a column, the highest number first; -1: by all of them, as texts.
func inOrder(t *testing.T, column int) func(a, b string) int {
	if column < 0 {
		return strings.Compare
	}
	number := func(row string) float64 {
		text := strings.Fields(row)[column]
		digits := strings.TrimRight(text, "kMGiB")
		n, err := strconv.ParseFloat(digits, 64)
		if err != nil {
			t.Errorf("%s in %s: %v", text, row, err)
		}
		if strings.HasPrefix(text[len(digits):], "k") {
			n *= 1000
		}
		return n
	}
	return func(a, b string) int { return cmp.Compare(number(b), number(a)) }
}

func TestLinesOfTheScreenAreNoLongerThanItIsWide(t *testing.T) {
	if got, want := cut("POD  CONTAINER\nß-pod  c\nshort\n", 8), "POD  CO…\nß-pod  c\nshort\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhoInterruptsAPullIsToldThatItGoesOn(t *testing.T) {
	f := populated(t)
	f.ours = true
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for len(f.history()) == 0 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}()
	got := berthIn(ctx, "", "--socket", f.socket, "pull", "slow:1")
	if got.code == 0 || !strings.Contains(got.err, "the daemon goes on with the pull of slow:1") {
		t.Errorf("got %+v", got)
	}
}

func TestTopShowsRatesAndSorts(t *testing.T) {
	f := populated(t)
	got := f.berth(t, "top", "-n", "2", "-d", "100ms")
	frames := strings.Split(strings.TrimSpace(got.out), "pods, ")
	if got.code != 0 || len(frames) != 3 {
		t.Fatalf("got %+v", got)
	}
	lines := strings.Split(frames[2], "\n")
	if !strings.HasSuffix(lines[0], "containers, by cpu") || !regexp.MustCompile(`^NAMESPACE +POD +CONTAINER +CPU % +MEM +LIMIT +RX/s +TX/s +RESTARTS$`).MatchString(lines[1]) {
		t.Errorf("got\n%s", got.out)
	}
	for _, line := range strings.Split(strings.TrimSpace(frames[1]), "\n")[2:] { // the first look: nothing to compare with
		if f := strings.Fields(line); len(f) > 3 && f[0] != "NAMESPACE" && f[3] != "-" {
			t.Errorf("a rate of one look: %q", line)
		}
	}
	// The container that was made last uses most, a tenth of a core times its number.
	if n := len(f.containers); !strings.Contains(lines[2], f.containers[n-1].Metadata.Name) || !strings.Contains(lines[2], "30.0") || !strings.Contains(lines[2], "2kB") {
		t.Errorf("%d containers:\n%s", n, got.out)
	}
	got = f.berth(t, "top", "-n", "1", "--sort", "memory")
	if lines := strings.Split(got.out, "\n"); len(lines) < 3 || !strings.Contains(lines[2], "10MiB") || !strings.Contains(lines[2], "64MiB") {
		t.Errorf("got\n%s", got.out)
	}
	for i, c := range f.containers {
		c.Metadata.Attempt = uint32(i) // the one that was made last was restarted most
	}
	for by, column := range map[string]int{"cpu": 3, "memory": 4, "network": 6, "restarts": 8, "name": -1} {
		got := f.berth(t, "top", "-n", "2", "-d", "100ms", "--sort", by)
		rows := strings.Split(strings.TrimSpace(got.out[strings.LastIndex(got.out, "RESTARTS\n")+len("RESTARTS\n"):]), "\n")
		if len(rows) < 2 || !slices.IsSortedFunc(rows, inOrder(t, column)) {
			t.Errorf("by %s:\n%s", by, strings.Join(rows, "\n"))
		}
	}
	for args, want := range map[string]string{"top --sort x": `--sort "x" is not one of`, "top -d 1ms": "--interval 1ms: is shorter", "top -n x": "invalid argument"} {
		if got := f.berth(t, strings.Fields(args)...); got.code != 1 || !strings.Contains(got.err, want) {
			t.Errorf("%s: %+v", args, got)
		}
	}
}
