// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"encoding/json"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func baseSpec() *specs.Spec {
	shares, limit := uint64(100), int64(1<<20)
	return &specs.Spec{Version: "1.2.0", Root: &specs.Root{Path: "/r"}, Annotations: map[string]string{"a": "1"},
		Process: &specs.Process{Args: []string{"sh"}, Env: []string{"PATH=/bin", "OLD=1"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 10, Soft: 10}}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/data", Type: "bind", Source: "/old"}},
		Linux: &specs.Linux{CgroupsPath: "/x", Namespaces: []specs.LinuxNamespace{{Type: "network", Path: "/n"}, {Type: "ipc"}},
			Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}, Memory: &specs.LinuxMemory{Limit: &limit}}}}
}

func TestAdjustmentsAreMadeToTheSpec(t *testing.T) {
	for _, c := range []struct {
		name   string
		adjust *api.ContainerAdjustment
		want   func(s *specs.Spec) (got, want any)
	}{
		{"env: change, remove, add", &api.ContainerAdjustment{Env: []*api.KeyValue{{Key: "PATH", Value: "/sbin"}, {Key: "-OLD"}, {Key: "NEW", Value: "2"}}},
			func(s *specs.Spec) (any, any) { return s.Process.Env, []string{"PATH=/sbin", "NEW=2"} }},
		{"args", &api.ContainerAdjustment{Args: []string{"", "true"}},
			func(s *specs.Spec) (any, any) { return s.Process.Args, []string{"", "true"} }},
		{"annotations", &api.ContainerAdjustment{Annotations: map[string]string{"-a": "", "b": "2"}},
			func(s *specs.Spec) (any, any) { return s.Annotations, map[string]string{"b": "2"} }},
		{"mount in the place of another", &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "/data", Type: "bind", Source: "/new"}}},
			func(s *specs.Spec) (any, any) { return []any{len(s.Mounts), s.Mounts[0].Source}, []any{2, "/new"} }},
		{"mount removed", &api.ContainerAdjustment{Mounts: []*api.Mount{{Destination: "-/data"}}},
			func(s *specs.Spec) (any, any) { return len(s.Mounts), 1 }},
		{"device with its cgroup rule", &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}}}},
			func(s *specs.Spec) (any, any) {
				return []any{s.Linux.Devices[0].Path, s.Linux.Resources.Devices[0].Allow, *s.Linux.Resources.Devices[0].Minor}, []any{"/dev/x", true, int64(3)}
			}},
		{"rlimit that was set before", &api.ContainerAdjustment{Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20, Soft: 5}}},
			func(s *specs.Spec) (any, any) {
				return s.Process.Rlimits, []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20, Soft: 5}}
			}},
		{"hooks of all kinds", &api.ContainerAdjustment{Hooks: &api.Hooks{Prestart: []*api.Hook{{Path: "/1"}}, CreateRuntime: []*api.Hook{{Path: "/2"}},
			CreateContainer: []*api.Hook{{Path: "/3"}}, StartContainer: []*api.Hook{{Path: "/4"}}, Poststart: []*api.Hook{{Path: "/5"}}, Poststop: []*api.Hook{{Path: "/6"}}}},
			func(s *specs.Spec) (any, any) {
				h := s.Hooks
				return h.Prestart[0].Path + h.CreateRuntime[0].Path + h.CreateContainer[0].Path + h.StartContainer[0].Path + h.Poststart[0].Path + h.Poststop[0].Path, //nolint:staticcheck // plugins use it
					"/1/2/3/4/5/6"
			}},
		{"namespaces", &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "network", Path: "/m"}, {Type: "-ipc"}, {Type: "time"}}}},
			func(s *specs.Spec) (any, any) {
				return s.Linux.Namespaces, []specs.LinuxNamespace{{Type: "network", Path: "/m"}, {Type: "time"}}
			}},
		{"sysctl, cgroup path, oom score", &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Sysctl: map[string]string{"net.x": "1"}, CgroupsPath: "/y", OomScoreAdj: api.Int(7)}},
			func(s *specs.Spec) (any, any) {
				return []any{s.Linux.Sysctl["net.x"], s.Linux.CgroupsPath, *s.Process.OOMScoreAdj}, []any{"1", "/y", 7}
			}},
		{"seccomp", &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"}}},
			func(s *specs.Spec) (any, any) { return string(s.Linux.Seccomp.DefaultAction), "SCMP_ACT_ALLOW" }},
		{"scheduler and io priority", &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Scheduler: &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 3},
			IoPriority: &api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 4}}},
			func(s *specs.Spec) (any, any) {
				return []any{s.Process.Scheduler.Policy, s.Process.Scheduler.Nice, s.Process.IOPriority.Priority}, []any{specs.SchedBatch, int32(3), 4}
			}},
		{"resources", &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Cpu: &api.LinuxCPU{Shares: api.UInt64(uint64(7)), Cpus: "0"},
			Memory: &api.LinuxMemory{Limit: api.Int64(int64(4096))}, Pids: &api.LinuxPids{Limit: 5}, Unified: map[string]string{"memory.high": "1"},
			HugepageLimits: []*api.HugepageLimit{{PageSize: "2MB", Limit: 1}}}}},
			func(s *specs.Spec) (any, any) {
				r := s.Linux.Resources
				return []any{*r.CPU.Shares, r.CPU.Cpus, *r.Memory.Limit, *r.Memory.Swap, *r.Pids.Limit, r.Unified["memory.high"], r.HugepageLimits[0].Limit},
					[]any{uint64(7), "0", int64(4096), int64(4096), int64(5), "1", uint64(1)}
			}},
		{"rdt class", &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{RdtClass: api.String("gold")}}},
			func(s *specs.Spec) (any, any) { return s.Linux.IntelRdt.ClosID, "gold" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := json.Marshal(baseSpec())
			if err != nil {
				t.Fatal(err)
			}
			made, err := (&NRI{cfg: Config{RDT: gold}}).adjust(raw, c.adjust)
			if err != nil {
				t.Fatal(err)
			}
			var s specs.Spec
			if err := json.Unmarshal(made.Spec, &s); err != nil {
				t.Fatal(err)
			}
			if got, want := c.want(&s); !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if (made.Resources != nil) != (c.name == "resources" || strings.Contains(c.name, "oom score")) {
				t.Errorf("resources reported as changed: %v", made.Resources)
			}
		})
	}
}

func TestAdjustmentsThatCannotBeMadeAreRefused(t *testing.T) {
	raw, err := json.Marshal(baseSpec())
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*api.ContainerAdjustment{
		"CDI":       {CDIDevices: []*api.CDIDevice{{Name: "v/c=d"}}},
		"namespace": {Linux: &api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "nothing"}}}},
		"blockio":   {Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{BlockioClass: api.String("slow")}}},
	} {
		if _, err := (&NRI{}).adjust(raw, a); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: got %v, want ErrRefused", name, err)
		}
	}
	injected := ""
	n := &NRI{cfg: Config{InjectCDI: func(_ *specs.Spec, names []string) error { injected = names[0]; return nil }}}
	if _, err := n.adjust(raw, &api.ContainerAdjustment{CDIDevices: []*api.CDIDevice{{Name: "v/c=d"}}}); err != nil || injected != "v/c=d" {
		t.Errorf("CDI with an injector: %q, %v", injected, err)
	}
}

func TestContainersWithoutAReadableSpecAreToldAllTheSame(t *testing.T) {
	got := containerMessages([]Container{{ID: "a"}, {ID: "b", Spec: []byte("garbage")}, {ID: "c", Spec: []byte(`{"process":{"args":["x"]}}`)}}, slog.New(slog.DiscardHandler))
	if len(got) != 3 || got[1].Id != "b" || got[2].Args[0] != "x" {
		t.Errorf("got %v", got)
	}
}

// gold is a node where every class of RDT is known.
func gold(class string) (*specs.LinuxIntelRdt, error) {
	return &specs.LinuxIntelRdt{ClosID: class}, nil
}
