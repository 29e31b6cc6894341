// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"reflect"
	"testing"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/events"
	forward "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berth-run/berth/internal/shimapi/task"
)

func init() {
	stamp := timestamppb.New(at)
	pairs = append(pairs, []struct {
		ours   Message
		theirs proto.Message
	}{
		{
			&ForwardRequest{Envelope{at, "ns", "/tasks/exit", Any{"url", []byte("x")}}},
			&forward.ForwardRequest{Envelope: &types.Envelope{Timestamp: stamp, Namespace: "ns", Topic: "/tasks/exit", Event: &anypb.Any{TypeUrl: "url", Value: []byte("x")}}},
		},
		{
			&TaskCreate{"id", "/b", []Mount{{Type: "overlay", Source: "s", Options: []string{"ro"}}}, TaskIO{"i", "o", "e", true}, 7},
			&events.TaskCreate{ContainerID: "id", Bundle: "/b", Rootfs: []*types.Mount{{Type: "overlay", Source: "s", Options: []string{"ro"}}},
				IO: &events.TaskIO{Stdin: "i", Stdout: "o", Stderr: "e", Terminal: true}, Pid: 7},
		},
		{&TaskStart{"id", 7}, &events.TaskStart{ContainerID: "id", Pid: 7}},
		{&TaskExit{"id", "exec", 7, 137, at}, &events.TaskExit{ContainerID: "id", ID: "exec", Pid: 7, ExitStatus: 137, ExitedAt: stamp}},
		{&TaskDelete{"id", 7, 137, at, "exec"}, &events.TaskDelete{ContainerID: "id", ID: "exec", Pid: 7, ExitStatus: 137, ExitedAt: stamp}},
		{&TaskExec{"id", "exec", 7}, &events.TaskExecStarted{ContainerID: "id", ExecID: "exec", Pid: 7}},
		{&TaskExec{"id", "exec", 0}, &events.TaskExecAdded{ContainerID: "id", ExecID: "exec"}},
		{&TaskEvent{"id"}, &events.TaskOOM{ContainerID: "id"}},
		{&TaskEvent{"id"}, &events.TaskPaused{ContainerID: "id"}},
		{
			&RuncOptions{true, true, "/c", 1, 2, "/runc", "/root", true},
			&options.Options{NoPivotRoot: true, NoNewKeyring: true, ShimCgroup: "/c", IoUid: 1, IoGid: 2, BinaryName: "/runc", Root: "/root", SystemdCgroup: true},
		},
		{&RuntimeOptions{"/c", []byte("a = 1")}, &runtimeoptions.Options{ConfigPath: "/c", ConfigBody: []byte("a = 1")}},
		{&RuntimeInfo{Name: "n"}, &types.RuntimeInfo{Name: "n"}},
		{
			&RuntimeInfo{"n", RuntimeVersion{"v"}, Any{"o", []byte("1")}, Any{"f", []byte("2")}},
			&types.RuntimeInfo{Name: "n", Version: &types.RuntimeVersion{Version: "v"}, Options: &anypb.Any{TypeUrl: "o", Value: []byte("1")},
				Features: &anypb.Any{TypeUrl: "f", Value: []byte("2")}},
		},
		{&StatsResponse{Any{"url", []byte("x")}}, &task.StatsResponse{Stats: &anypb.Any{TypeUrl: "url", Value: []byte("x")}}},
	}...)
}

// number gives each uint64 of a struct, and of those in it, a value of its own.
func number(v reflect.Value, next *uint64) {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Uint64:
			*next++
			f.SetUint(*next)
		case reflect.Struct:
			number(f, next)
		}
	}
}

func TestMetricsAreWhatContainerdReads(t *testing.T) {
	var m1 MetricsV1
	var next uint64
	number(reflect.ValueOf(&m1).Elem(), &next)
	m1.IOBytes = []IOEntryV1{{"Read", 8, 16, 100}}
	var got1 v1.Metrics
	if err := proto.Unmarshal(Marshal(&m1), &got1); err != nil {
		t.Fatal(err)
	}
	want1 := &v1.Metrics{
		Pids: &v1.PidsStat{Current: m1.PIDs, Limit: m1.PIDLimit},
		CPU: &v1.CPUStat{
			Usage:      &v1.CPUUsage{Total: m1.CPUTotal, Kernel: m1.CPUKernel, User: m1.CPUUser},
			Throttling: &v1.Throttle{Periods: m1.Periods, ThrottledPeriods: m1.ThrottledPeriods, ThrottledTime: m1.Throttled},
		},
		Memory: &v1.MemoryStat{
			Cache: m1.Cache, RSS: m1.RSS, MappedFile: m1.MappedFile, PgFault: m1.PageFaults, PgMajFault: m1.MajorFaults,
			InactiveFile: m1.InactiveFile, ActiveFile: m1.ActiveFile,
			TotalCache: m1.Cache, TotalRSS: m1.RSS, TotalMappedFile: m1.MappedFile, TotalPgFault: m1.PageFaults, TotalPgMajFault: m1.MajorFaults,
			TotalInactiveFile: m1.InactiveFile, TotalActiveFile: m1.ActiveFile,
			Usage: entry(m1.Memory), Swap: entry(m1.Swap), Kernel: entry(m1.Kernel),
		},
		Blkio:            &v1.BlkIOStat{IoServiceBytesRecursive: []*v1.BlkIOEntry{{Op: "Read", Major: 8, Minor: 16, Value: 100}}},
		MemoryOomControl: &v1.MemoryOomControl{OomKill: m1.OOMKills},
	}
	if !proto.Equal(&got1, want1) {
		t.Errorf("v1: they read %v\nnot %v", &got1, want1)
	}
	var m2 MetricsV2
	number(reflect.ValueOf(&m2).Elem(), &next)
	m2.IO = []IOEntryV2{{8, 16, 1, 2, 3, 4}}
	var got2 v2.Metrics
	if err := proto.Unmarshal(Marshal(&m2), &got2); err != nil {
		t.Fatal(err)
	}
	want2 := &v2.Metrics{
		Pids: &v2.PidsStat{Current: m2.PIDs, Limit: m2.PIDLimit},
		CPU: &v2.CPUStat{UsageUsec: m2.CPU, UserUsec: m2.CPUUser, SystemUsec: m2.CPUSystem, NrPeriods: m2.Periods, NrThrottled: m2.ThrottledPeriods,
			ThrottledUsec: m2.Throttled},
		Memory: &v2.MemoryStat{
			Anon: m2.Anon, File: m2.File, FileMapped: m2.FileMapped, InactiveFile: m2.InactiveFile, ActiveFile: m2.ActiveFile, Pgfault: m2.PageFaults,
			Pgmajfault: m2.MajorFaults, Usage: m2.Memory, UsageLimit: m2.MemoryLimit, SwapUsage: m2.Swap, SwapLimit: m2.SwapLimit, MaxUsage: m2.MaxUsage,
		},
		Io:           &v2.IOStat{Usage: []*v2.IOEntry{{Major: 8, Minor: 16, Rbytes: 1, Wbytes: 2, Rios: 3, Wios: 4}}},
		MemoryEvents: &v2.MemoryEvents{OomKill: m2.OOMKills},
	}
	if !proto.Equal(&got2, want2) {
		t.Errorf("v2: they read %v\nnot %v", &got2, want2)
	}
}

func entry(m MemoryEntry) *v1.MemoryEntry {
	return &v1.MemoryEntry{Limit: m.Limit, Usage: m.Usage, Max: m.Max, Failcnt: m.FailCount}
}

func TestFiguresOfForeignMetrics(t *testing.T) {
	v1bytes, err1 := proto.Marshal(&v1.Metrics{Pids: &v1.PidsStat{Current: 3, Limit: 9}, CPU: &v1.CPUStat{Usage: &v1.CPUUsage{Total: 5000, PerCPU: []uint64{1, 2}, Kernel: 1}},
		Memory: &v1.MemoryStat{Cache: 1, InactiveFile: 2, TotalInactiveFile: 30, Usage: &v1.MemoryEntry{Limit: 1000, Usage: 400, Max: 7}, Swap: &v1.MemoryEntry{Usage: 9}}})
	v2bytes, err2 := proto.Marshal(&v2.Metrics{Pids: &v2.PidsStat{Current: 3}, CPU: &v2.CPUStat{UsageUsec: 5, UserUsec: 1},
		Memory: &v2.MemoryStat{Anon: 1, InactiveFile: 30, Usage: 400, UsageLimit: 1000, SwapUsage: 8}})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	want := Figures{CPU: 5000, Memory: 400, MemoryLimit: 1000, InactiveFile: 30, Tasks: 3}
	for url, value := range map[string][]byte{"io.containerd.cgroups.v1.Metrics": v1bytes, "types.containerd.io/io.containerd.cgroups.v2.Metrics": v2bytes} {
		r := &StatsResponse{Any{url, value}}
		if got, err := r.Figures(); err != nil || got != want {
			t.Errorf("%s: %+v, %v", url, got, err)
		}
		r.Stats.Value = value[:len(value)-1]
		if _, err := r.Figures(); err == nil {
			t.Errorf("%s: cut off", url)
		}
	}
	if _, err := (&StatsResponse{Any{"windows", v1bytes}}).Figures(); err == nil {
		t.Error("metrics of an unknown type were read")
	}
}

func FuzzFigures(f *testing.F) {
	f.Add("io.containerd.cgroups.v1.Metrics", Marshal(&MetricsV1{CPUTotal: 1}))
	f.Add("io.containerd.cgroups.v2.Metrics", Marshal(&MetricsV2{CPU: 1}))
	f.Fuzz(func(_ *testing.T, url string, value []byte) {
		_, _ = (&StatsResponse{Any{url, value}}).Figures() // whatever it is, it is no panic
	})
}
