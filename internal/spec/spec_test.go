// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func generate(t *testing.T, in Input) *specs.Spec {
	t.Helper()
	s, err := Generate(in)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, in, s)
	return s
}

func TestGenerateChangesNothingThatItIsGiven(t *testing.T) {
	in := ordinaryInput()
	in.Container.Linux.SecurityContext.MaskedPaths = []string{"/b", "/a"}
	in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}}
	in.Host.CgroupV2 = true
	sandbox, container, host := proto.Clone(in.Sandbox), proto.Clone(in.Container), fmt.Sprint(in.Host)
	s := generate(t, in)
	s.Process.User.AdditionalGids[0], s.Linux.MaskedPaths[0], s.Linux.Resources.Unified["memory.high"] = 7, "/x", "2"
	if !proto.Equal(sandbox, in.Sandbox) || !proto.Equal(container, in.Container) || host != fmt.Sprint(in.Host) || in.User.Groups[0] == 7 {
		t.Error("the input was changed, or is shared with the result")
	}
}

func TestServiceLinksDoNotSlowContainersDown(t *testing.T) {
	in := ordinaryInput()
	for i := range 40000 {
		in.Container.Envs = append(in.Container.Envs, &runtimeapi.KeyValue{Key: fmt.Sprintf("SVC_%d", i), Value: []byte("x")})
	}
	begin := time.Now()
	s, err := Generate(in)
	if err != nil || len(s.Process.Env) < 40000 {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 3*time.Second { // searching each name in a list took minutes
		t.Errorf("took %s", took)
	}
}

// The kernel's crypto sockets (AF_ALG) have been a way to root, and virtual machines' (AF_VSOCK) lead past the pod's network.
func TestTheDefaultSeccompProfileRefusesSocketsThatLeadOut(t *testing.T) {
	in := ordinaryInput()
	in.Profile = Profile{Default: true}
	s := generate(t, in)
	for family, want := range map[uint64]bool{1: true, 2: true, 10: true, 16: true, 38: false, 40: false} {
		if got := allowsCall(s, "socket", family); got != want {
			t.Errorf("socket of family %d: allowed %t, want %t", family, got, want)
		}
	}
}

// allowsCall tells whether a call with this first argument is allowed.
func allowsCall(s *specs.Spec, name string, arg uint64) bool {
	return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(rule specs.LinuxSyscall) bool {
		if rule.Action != specs.ActAllow || !slices.Contains(rule.Names, name) {
			return false
		}
		for _, a := range rule.Args { // all of them must hold
			holds, known := map[specs.LinuxSeccompOperator]bool{specs.OpEqualTo: arg == a.Value, specs.OpNotEqual: arg != a.Value, specs.OpLessThan: arg < a.Value,
				specs.OpLessEqual: arg <= a.Value, specs.OpGreaterThan: arg > a.Value, specs.OpGreaterEqual: arg >= a.Value}[a.Op]
			if a.Index == 0 && known && !holds {
				return false
			}
		}
		return true
	})
}

func TestTheDefaultSeccompProfileFollowsCapabilities(t *testing.T) {
	in := ordinaryInput()
	in.Profile = Profile{Default: true}
	if allows(generate(t, in), "mount") {
		t.Error("mount is allowed to an ordinary container")
	}
	if !allows(generate(t, in), "execve") {
		t.Error("execve is not allowed")
	}
	in.Container.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	if !allows(generate(t, in), "mount") {
		t.Error("mount is not allowed to a container with CAP_SYS_ADMIN")
	}
	in.Sandbox.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{Privileged: true}}
	in.Container.Linux.SecurityContext.Privileged = true
	if s := generate(t, in); s.Linux.Seccomp != nil {
		t.Error("a privileged container is confined")
	}
}

func allows(s *specs.Spec, call string) bool {
	return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
		return c.Action == specs.ActAllow && len(c.Args) == 0 && slices.Contains(c.Names, call)
	})
}

func TestOnlyTheDefaultSeccompProfileLeavesOutX32WhereTheKernelHasNone(t *testing.T) {
	in := ordinaryInput()
	in.Profile = Profile{Default: true}
	with := generate(t, in).Linux.Seccomp
	in.Host.NoX32 = true
	without := generate(t, in).Linux.Seccomp
	if slices.Contains(without.Architectures, specs.ArchX32) || !reflect.DeepEqual(with.Syscalls, without.Syscalls) {
		t.Errorf("%v, %d rules of %d", without.Architectures, len(without.Syscalls), len(with.Syscalls))
	}
	if runtime.GOARCH == "amd64" && (!slices.Contains(with.Architectures, specs.ArchX32) || !slices.Contains(without.Architectures, specs.ArchX86)) {
		t.Errorf("%v and %v", with.Architectures, without.Architectures)
	}
	in.Profile = Profile{Path: "p.json", JSON: []byte(`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"]}`)}
	if own := generate(t, in).Linux.Seccomp; !slices.Contains(own.Architectures, specs.ArchX32) {
		t.Errorf("a profile of somebody's own: %v", own.Architectures)
	}
}

func TestALocalSeccompProfileIsTakenOrAnError(t *testing.T) {
	in := ordinaryInput()
	in.Profile = Profile{Path: "/p.json", JSON: []byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`)}
	s := generate(t, in)
	if s.Linux.Seccomp.DefaultAction != specs.ActErrno || !allows(s, "read") || allows(s, "write") {
		t.Errorf("%+v", s.Linux.Seccomp)
	}
	for _, bad := range []string{``, `{`, `{}`, `null`, `[]`, `{"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`,
		`{"defaultAction":"SCMP_ACT_ALOW"}`, `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"allow"}]}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"=="}]}]}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}`} {
		in.Profile.JSON = []byte(bad)
		if s, err := Generate(in); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "/p.json") {
			t.Errorf("%q: %+v, %v", bad, s, err)
		}
	}
	in.Profile.JSON = nil // an empty file must not mean unconfined
	if _, err := Generate(in); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestExecIsLikeTheContainersOwnProcess(t *testing.T) {
	in := ordinaryInput()
	in.Host.AppArmor, in.Host.AppArmorDefault = true, "berth-default"
	in.Container.Linux.SecurityContext.NoNewPrivs = true
	s := generate(t, in)
	config, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ExecJSON(config, Exec{Cmd: []string{"sh", "-c", ""}, TTY: true, Width: 80, Height: 24}, in.Host)
	if err != nil {
		t.Fatal(err)
	}
	var got specs.Process
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	want := *s.Process
	want.ConsoleSize = &specs.Box{Width: 80, Height: 24}
	want.Args, want.Terminal, want.Env = []string{"sh", "-c", ""}, true, append(slices.Clone(want.Env), "TERM=xterm")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if slices.Contains(s.Process.Env, "TERM=xterm") || s.Process.Args[0] == "sh" {
		t.Error("the container's own process was changed")
	}
	for _, bad := range [][]string{nil, {"a", "b\x00"}} {
		if _, err := ExecJSON(config, Exec{Cmd: bad}, in.Host); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "{}", "x"} {
		if _, err := ExecJSON([]byte(bad), Exec{Cmd: []string{"a"}}, in.Host); err == nil {
			t.Errorf("%q is no spec", bad)
		}
	}
}

func TestExecHasTheOOMScoreOfTheLastUpdate(t *testing.T) {
	in := ordinaryInput()
	in.Host.OOMScoreFloor = -500
	in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 100}
	s := generate(t, in)
	for _, tc := range []struct {
		updated *int64
		want    int
	}{{nil, 100}, {new(int64), 0}, {&[]int64{777}[0], 777}, {&[]int64{-900}[0], -500}} {
		p, err := ExecProcess(s, Exec{Cmd: []string{"true"}, OOMScoreAdj: tc.updated}, in.Host)
		if err != nil || *p.OOMScoreAdj != tc.want || *s.Process.OOMScoreAdj != 100 {
			t.Errorf("want %d: %v, %v; the container's own %d", tc.want, *p.OOMScoreAdj, err, *s.Process.OOMScoreAdj)
		}
	}
}

func TestAnImagesNULIsAnError(t *testing.T) {
	for name, spoil := range map[string]func(*ImageConfig){
		"env":        func(c *ImageConfig) { c.Env = []string{"A=b\x00c"} },
		"entrypoint": func(c *ImageConfig) { c.Entrypoint = []string{"/app\x00"} },
		"workdir":    func(c *ImageConfig) { c.WorkingDir = "/a\x00b" },
	} {
		in := ordinaryInput()
		spoil(&in.Image)
		if _, err := Generate(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSharedMemoryIsTheHostsOnlyInItsIPCNamespace(t *testing.T) {
	in := ordinaryInput()
	in.Paths.Shm = ""
	for _, m := range generate(t, in).Mounts {
		if m.Destination == "/dev/shm" && (m.Source == "/dev/shm" || m.Type != "tmpfs") {
			t.Errorf("%+v", m)
		}
	}
}
