// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write testdata/*.spec.json anew")

// request is testdata/<case>.json: a CRI request, and what differs from an ordinary image, user and host.
type request struct {
	Sandbox, Container json.RawMessage
	Image              *ImageConfig
	User               *User
	Paths              *Paths
	Host               *Host
	Devices            []Device
	WithoutHostDevices bool
	Annotations        map[string]string
	CgroupsPath        string
	Sources            []MountSource
	Volumes            []Volume
	Labels             Labels
}

func ordinaryHost() Host {
	return Host{Hostname: "node-1", OOMScoreFloor: -1000, Limits: map[string]uint64{"RLIMIT_NOFILE": 1 << 30},
		Capabilities: append([]string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_TIME"}, defaultCapabilities...),
	}
}

func hostDevices() []Device {
	return []Device{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666, Access: "rwm"},
		{Path: "/dev/vda", Type: "b", Major: 254, Mode: 0o660, GID: 6, Access: "rwm"},
	}
}

func ordinaryPaths() Paths {
	const pod = "/run/berth/pods/s1/"
	return Paths{Rootfs: pod + "c1/rootfs", NetNS: "/run/netns/berth-s1", IPCNS: pod + "ns/ipc", UTSNS: pod + "ns/uts", PIDNS: pod + "ns/pid",
		ResolvConf: pod + "resolv.conf", Hostname: pod + "hostname", Shm: pod + "shm", PauseBinary: "/usr/bin/berth-shim"}
}

func ordinaryInput() Input {
	return Input{
		Sandbox: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "shop", Uid: "u-1"},
			Hostname: "web-0", LogDirectory: "/var/log/pods/shop_web_u-1"},
		Container: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "app"},
			Image: &runtimeapi.ImageSpec{Image: "sha256:aa", UserSpecifiedImage: "shop/app:1"}, LogPath: "app/0.log",
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}}},
		Image: ImageConfig{Entrypoint: []string{"/app"}, Cmd: []string{"--serve"}, Env: []string{"FROM=image", "PATH=/app/bin:/bin"}, WorkingDir: "/srv"},
		User:  User{UID: 1000, GID: 1000, Groups: []uint32{1000, 2000}, Home: "/home/app"},
		Paths: ordinaryPaths(), Host: ordinaryHost(), HostDevices: hostDevices(),
		CgroupsPath: "/kubepods/pod-u-1/c1", SandboxID: "s1", ContainerID: "c1",
	}
}

// fill puts what JSON says into what the ordinary input has already.
func fill(in *Input, data []byte) error {
	r := request{Image: &in.Image, User: &in.User, Paths: &in.Paths, Host: &in.Host}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return err
	}
	var sandbox runtimeapi.PodSandboxConfig
	var container runtimeapi.ContainerConfig
	if r.Sandbox != nil {
		if err := protojson.Unmarshal(r.Sandbox, &sandbox); err != nil {
			return err
		}
		sandbox.Metadata, sandbox.LogDirectory = in.Sandbox.Metadata, in.Sandbox.LogDirectory
		in.Sandbox = &sandbox
	}
	if r.Container != nil {
		if err := protojson.Unmarshal(r.Container, &container); err != nil {
			return err
		}
		container.Metadata, container.Image = in.Container.Metadata, in.Container.Image
		in.Container = &container
	}
	in.WithoutHostDevices, in.Annotations = r.WithoutHostDevices, r.Annotations
	in.CgroupsPath = cmp.Or(r.CgroupsPath, in.CgroupsPath)
	in.Devices, in.Sources, in.Volumes, in.Labels = r.Devices, r.Sources, r.Volumes, r.Labels
	if in.UserNS = UserNamespaceOf(in.Sandbox); in.UserNS != nil {
		in.Paths.UserNS = "/run/berth/pods/s1/ns/user"
	}
	return nil
}

func cases(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, f := range files {
		if strings.HasSuffix(f, ".spec.json") {
			continue
		}
		if all[strings.TrimSuffix(filepath.Base(f), ".json")], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	if len(all) < 20 {
		t.Fatalf("only %d cases in testdata", len(all))
	}
	return all
}

// TestGolden: a CRI request in, an OCI spec out, to the letter. A case that must be refused has "error: …" for a spec.
func TestGolden(t *testing.T) {
	for name, data := range cases(t) {
		t.Run(name, func(t *testing.T) {
			in := ordinaryInput()
			if err := fill(&in, data); err != nil {
				t.Fatal(err)
			}
			s, err := Generate(in)
			var got []byte
			switch {
			case err == nil:
				holds(t, in, s)
				if got, err = json.MarshalIndent(s, "", "  "); err != nil {
					t.Fatal(err)
				}
			case errors.Is(err, ErrInvalid):
				got = []byte("error: " + err.Error())
			default:
				t.Fatalf("error without a class: %v", err)
			}
			compare(t, filepath.Join("testdata", name+".spec.json"), append(got, '\n'))
		})
	}
}

func TestGoldenPause(t *testing.T) {
	in := ordinaryInput()
	in.Host.OOMScoreFloor = -500
	in.Host.AppArmorDefault = "berth-default"
	comparePause(t, in, "testdata/pause.spec.json")
	in.Labels = Labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}
	comparePause(t, in, "testdata/pause-selinux.spec.json")
	in.Labels = Labels{}
	in.UserNS, in.Paths.UserNS = &UserNamespace{IDRange{65536, 4096}, IDRange{65536, 4096}}, "/run/berth/pods/s1/ns/user"
	comparePause(t, in, "testdata/pause-user-namespace.spec.json")
}

func comparePause(t *testing.T, in Input, file string) {
	t.Helper()
	s, err := GeneratePause(in)
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.Seccomp.DefaultAction != specs.ActErrno || !allows(s, "futex") || allows(s, "mount") {
		t.Errorf("it is not confined by the default seccomp profile: %v", s.Linux.Seccomp.DefaultAction)
	}
	s.Linux.Seccomp = nil // the library's, some thousand lines
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	compare(t, file, append(got, '\n'))
}

func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s (go test ./internal/spec -update, then read the difference):\n%s", file, got)
	}
}

// holds checks what must be true of every spec that is made, whatever was asked for.
func holds(t testing.TB, in Input, s *specs.Spec) {
	t.Helper()
	privileged := in.Container.GetLinux().GetSecurityContext().GetPrivileged()
	caps := s.Process.Capabilities
	if len(caps.Ambient)+len(caps.Inheritable) != 0 {
		t.Errorf("ambient %q, inheritable %q", caps.Ambient, caps.Inheritable)
	}
	if s.Linux.Resources.Devices[0].Allow != (privileged && !in.WithoutHostDevices) {
		t.Errorf("devices start from allow=%v, privileged is %v", s.Linux.Resources.Devices[0].Allow, privileged)
	}
	for _, list := range [][]string{s.Process.Args, s.Process.Env} {
		for _, v := range list {
			if strings.ContainsRune(v, 0) {
				t.Errorf("%q has a NUL", v)
			}
		}
	}
	names := map[string]bool{}
	for _, e := range s.Process.Env {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" || names[name] {
			t.Errorf("environment has %q, or has it twice", e)
		}
		names[name] = true
	}
	seen := map[string]bool{}
	for _, m := range s.Mounts {
		if !filepath.IsAbs(m.Destination) || filepath.Clean(m.Destination) != m.Destination || m.Destination == "/" || seen[m.Destination] {
			t.Errorf("mount on %q, or twice there", m.Destination)
		}
		for above := range seen {
			if strings.HasPrefix(above, m.Destination+"/") {
				t.Errorf("mount on %s hides the one on %s", m.Destination, above)
			}
		}
		seen[m.Destination] = true
	}
	if !filepath.IsAbs(s.Process.Cwd) || len(s.Process.Args) == 0 || s.Root.Path != in.Paths.Rootfs {
		t.Errorf("cwd %q, args %q, root %q", s.Process.Cwd, s.Process.Args, s.Root.Path)
	}
}
