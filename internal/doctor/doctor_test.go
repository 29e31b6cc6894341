// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/config"
)

// machine is a node on which all is well, made of files and a daemon that is a struct.
type machine struct {
	*testing.T
	dir string
	Doctor
	daemon *daemon
}

// daemon answers as the CRI does; what is wrong with it is set by the tests.
type daemon struct {
	runtimeapi.RuntimeServiceClient
	name   string
	mute   error
	status *runtimeapi.StatusResponse
	driver runtimeapi.CgroupDriver
	pods   []*runtimeapi.PodSandbox
	// containers are those of pods.
	containers []*runtimeapi.Container
}

func (d *daemon) Version(context.Context, *runtimeapi.VersionRequest, ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: d.name, RuntimeVersion: "v1", RuntimeApiVersion: "v1"}, d.mute
}

func (d *daemon) Status(context.Context, *runtimeapi.StatusRequest, ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	return d.status, d.mute
}

func (d *daemon) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest, ...grpc.CallOption) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: d.driver}}, nil
}

func (d *daemon) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: d.pods}, nil
}

func (d *daemon) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: d.containers}, nil
}

func healthy(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bd-") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &machine{T: t, dir: dir, daemon: &daemon{name: "berth", driver: runtimeapi.CgroupDriver_SYSTEMD, status: &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true}}},
		Info: map[string]string{"operations": `[{"method":"PullImage","object":"busybox","seconds":2}]`}}}}
	cfg := *config.Defaults()
	cfg.Root, cfg.State, cfg.Socket = dir+"/root", dir+"/state", dir+"/cri.sock"
	cfg.Network.ConfDir, cfg.Network.BinDirs, cfg.Network.NetnsDir = dir+"/net.d", []string{dir + "/cni"}, dir+"/netns"
	cfg.Registry.ConfigPath = dir + "/certs.d"
	cfg.Shim.Path = dir + "/berth-shim"
	cfg.Runtimes = map[string]*config.Runtime{"runc": {Type: "oci", Path: dir + "/runc"}}
	m.Config, m.Root = &cfg, dir+"/machine"
	m.fakeClock = func() (bool, error) { return true, nil }
	m.disk(func(*syscall.Statfs_t) {})
	m.Connect = func(context.Context) (runtimeapi.RuntimeServiceClient, error) { return m.daemon, nil }
	for d, mode := range map[string]os.FileMode{cfg.Root: 0o700, cfg.State: 0o711, cfg.Network.NetnsDir: 0o755} { // as the daemon makes them
		if err := os.Mkdir(d, mode); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(cfg.Socket, 0o660); err != nil {
		t.Fatal(err)
	}
	m.file("/net.d/10-pods.conflist", `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}`)
	for _, p := range []string{"/cni/bridge", "/cni/host-local", "/cni/portmap", "/berth-shim"} {
		m.program(p, "exit 0")
	}
	m.program("/runc", `case $1 in --version) echo "runc version 1.5.2";; *) echo '{"ociVersionMin":"1.0.0"}';; esac`)
	for _, p := range []string{"/proc/self/ns/cgroup", "/proc/self/ns/ipc", "/proc/self/ns/mnt", "/proc/self/ns/net", "/proc/self/ns/pid",
		"/proc/self/ns/uts", "/proc/self/ns/user"} {
		m.file("/machine"+p, "")
	}
	for p, text := range map[string]string{
		"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids", "/proc/sys/kernel/osrelease": "6.12.41-cloud", "/proc/filesystems": "nodev\toverlay\n\text4",
		"/proc/sys/kernel/seccomp/actions_avail": "kill_process errno allow", "/sys/module/apparmor/parameters/enabled": "Y", "/usr/sbin/apparmor_parser": "", "/usr/sbin/iptables": "",
		"/proc/sys/net/ipv4/ip_forward": "1", "/proc/sys/fs/inotify/max_user_instances": "1024", "/proc/sys/fs/inotify/max_user_watches": "524288",
		"/proc/sys/kernel/pid_max": "4194304", "/var/lib/kubelet/config.yaml": "containerRuntimeEndpoint: unix://" + cfg.Socket + "\ncgroupDriver: systemd\n",
	} {
		m.file("/machine"+p, text)
	}
	return m
}

// inForce has the daemon tell that it runs with c.
func (m *machine) inForce(c *config.Config, o config.Origins) {
	m.Helper()
	text, err := json.Marshal(map[string]any{"berth": config.Entries(c, o)})
	if err != nil {
		m.Fatal(err)
	}
	m.daemon.status.Info["config"] = string(text)
}

// disk has a file system that is as it should be, but for what change does to it.
func (m *machine) disk(change func(*syscall.Statfs_t)) {
	m.fakeStatfs = func(_ string, st *syscall.Statfs_t) error {
		*st = syscall.Statfs_t{Type: 0xef53, Blocks: 1000, Bavail: 500, Bfree: 500, Files: 1000, Ffree: 500}
		change(st)
		return nil
	}
}

// old makes a file or folder and all of it as if made an hour ago.
func (m *machine) old(path string) {
	m.Helper()
	hourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(m.dir+path, hourAgo, hourAgo); err != nil {
		m.Fatal(err)
	}
}

// mounted has the table of mounts tell of one more.
func (m *machine) mounted(path string) {
	m.Helper()
	if err := os.MkdirAll(m.dir+path, 0o755); err != nil {
		m.Fatal(err)
	}
	m.file("/machine/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda rw\n99 22 0:55 / "+m.dir+path+" rw - overlay overlay rw\n")
}

func (m *machine) file(path, text string) {
	m.Helper()
	path = m.dir + path
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.Fatal(err)
	}
}

func (m *machine) program(path, script string) {
	m.Helper()
	m.file(path, "#!/bin/sh\n"+script+"\n")
	if err := os.Chmod(m.dir+path, 0o755); err != nil {
		m.Fatal(err)
	}
}

func (m *machine) remove(paths ...string) {
	m.Helper()
	for _, p := range paths {
		if err := os.RemoveAll(m.dir + p); err != nil {
			m.Fatal(err)
		}
	}
}

func (m *machine) chmod(path string, mode os.FileMode) {
	m.Helper()
	if err := os.Chmod(m.dir+path, mode); err != nil {
		m.Fatal(err)
	}
}

// problems are the findings that something is wrong.
func problems(all []Finding) []Finding {
	var bad []Finding
	for _, f := range all {
		if f.Level != OK {
			bad = append(bad, f)
		}
	}
	return bad
}

func TestAHealthyNodeHasNoFindings(t *testing.T) {
	m := healthy(t)
	all := m.Doctor.Run(t.Context())
	if bad := problems(all); len(bad) > 0 {
		t.Errorf("found %+v", bad)
	}
	seen := map[string]bool{}
	for _, f := range all {
		seen[f.Check] = true
	}
	for _, name := range []string{"config", "socket", "status", "restart", "operations", "kubelet", "cgroups", "kernel", "security", "sysctl", "network", "runtime", "checkpoint", "storage", "images", "clock", "leftover"} {
		if !seen[name] {
			t.Errorf("check %s says nothing", name)
		}
	}
}

// broken set-ups, each with the check that finds it, how bad it is and what the text names.
var broken = map[string]struct {
	ruin  func(*machine)
	check string
	level Level
	names string
}{
	"configuration with a mistake":    {func(m *machine) { m.ConfigError = errors.New("config.toml:3: unknown key") }, "config", Fail, "config.toml:3"},
	"a file that it names is missing": {func(m *machine) { m.Config.QoS.BlockIO = "/nowhere/io.yaml" }, "config", Fail, "qos.blockio_config: /nowhere/io.yaml: no such file"},
	"a folder of hooks is missing":    {func(m *machine) { m.Config.Hooks.Dirs = []string{"/nowhere"} }, "config", Warn, "hooks.dirs: /nowhere: no such file"},
	"no socket":                       {func(m *machine) { m.remove("/cri.sock") }, "socket", Fail, "there is no socket"},
	"a file instead of the socket":    {func(m *machine) { m.remove("/cri.sock"); m.file("/cri.sock", "") }, "socket", Fail, "not a socket"},
	"socket open to everybody":        {func(m *machine) { m.chmod("/cri.sock", 0o666) }, "socket", Fail, "everybody"},
	"daemon is dead": {func(m *machine) {
		m.Connect = func(context.Context) (runtimeapi.RuntimeServiceClient, error) {
			return nil, errors.New("connection refused")
		}
	}, "socket", Fail, "connection refused"},
	"daemon hangs": {func(m *machine) { m.daemon.mute = context.DeadlineExceeded }, "socket", Fail, "does not answer within 20s"},
	"not allowed": {func(m *machine) {
		m.Connect = func(context.Context) (runtimeapi.RuntimeServiceClient, error) {
			return nil, fmt.Errorf("connect: %w", os.ErrPermission)
		}
	}, "socket", Fail, "you may not use the socket"},
	"another runtime":   {func(m *machine) { m.daemon.name = "containerd" }, "socket", Fail, "containerd"},
	"network not ready": {func(m *machine) { c := m.daemon.status.Status.Conditions[1]; c.Status, c.Message = false, "no conf" }, "status", Fail, "no conf"},
	"an operation hangs": {func(m *machine) {
		m.daemon.status.Info["operations"] = `[{"method":"StopPodSandbox","object":"default/web","seconds":95}]`
	}, "operations", Warn, "default/web has been running for 1m35s"},
	"a stage hangs, and its caller has left": {func(m *machine) {
		m.daemon.status.Info["work"] = `[{"method":"RunPodSandbox","object":"sandbox 0123 (default/web)","seconds":95.2,"stage":"network for 1m34s"}]`
	}, "operations", Warn, "RunPodSandbox of sandbox 0123 (default/web) has been running for 1m35s: it is in stage network for 1m34s"},
	"daemon of before an upgrade": {func(m *machine) { m.Version = "v2" }, "restart", Warn, "the daemon is version v1, this program v2"},
	"changed file": {func(m *machine) {
		m.Origins = config.Origins{"root": "/etc/berth/config.toml:2", "log.level": "/etc/berth/config.d/log.toml:3"}
		now := *m.Config
		now.Log.Level = "debug"
		m.inForce(m.Config, config.Origins{"root": "flag --root"})
		m.Config = &now
	}, "restart", Warn, "its files say now: log.level"},
	"another version's status": {func(m *machine) { m.daemon.status.Info["work"] = `{}` }, "operations", Warn, "work cannot be read"},
	"kubelet elsewhere": {func(m *machine) {
		m.file("/machine/var/lib/kubelet/kubeadm-flags.env", `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///run/containerd/containerd.sock"`)
	}, "kubelet", Fail, "containerd.sock"},
	"kubelet's command": {func(m *machine) {
		m.file("/machine/proc/77/comm", "kubelet\n")
		m.file("/machine/proc/77/cmdline", "kubelet\x00--container-runtime-endpoint\x00unix:///x.sock\x00")
	}, "kubelet", Fail, "/x.sock"},
	"other cgroup driver":  {func(m *machine) { m.daemon.driver = runtimeapi.CgroupDriver_CGROUPFS }, "kubelet", Warn, "cgroup driver systemd"},
	"broken kubelet file":  {func(m *machine) { m.file("/machine/var/lib/kubelet/config.yaml", "a: [") }, "kubelet", Warn, "cannot be read"},
	"no memory controller": {func(m *machine) { m.file("/machine/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids") }, "cgroups", Fail, "memory"},
	"cgroup v1": {func(m *machine) {
		m.remove("/machine/sys/fs/cgroup/cgroup.controllers")
		m.file("/machine/proc/mounts", "cgroup /a cgroup rw,cpu,cpuset 0 0\ncgroup /b cgroup rw,memory,pids 0 0\ncgroup /c cgroup rw,devices,freezer 0 0\n")
	}, "cgroups", Warn, "cgroup v1"},
	"no cgroups":              {func(m *machine) { m.remove("/machine/sys/fs/cgroup/cgroup.controllers") }, "cgroups", Fail, "no cgroup hierarchy"},
	"old kernel":              {func(m *machine) { m.file("/machine/proc/sys/kernel/osrelease", "4.18.0-553.el8") }, "kernel", Fail, "4.18.0"},
	"no overlayfs":            {func(m *machine) { m.file("/machine/proc/filesystems", "ext4") }, "kernel", Fail, "overlayfs"},
	"no network namespaces":   {func(m *machine) { m.remove("/machine/proc/self/ns/net") }, "kernel", Fail, "net namespaces"},
	"no seccomp":              {func(m *machine) { m.remove("/machine/proc/sys/kernel/seccomp") }, "security", Warn, "system calls"},
	"AppArmor without parser": {func(m *machine) { m.remove("/machine/usr/sbin/apparmor_parser") }, "security", Fail, "apparmor_parser"},
	"no forwarding":           {func(m *machine) { m.file("/machine/proc/sys/net/ipv4/ip_forward", "0") }, "sysctl", Fail, "net.ipv4.ip_forward is 0"},
	"bridge past iptables":    {func(m *machine) { m.file("/machine/proc/sys/net/bridge/bridge-nf-call-iptables", "0") }, "sysctl", Warn, "bridge-nf-call-iptables"},
	"no CNI configuration":    {func(m *machine) { m.remove("/net.d") }, "network", Fail, "has no configuration"},
	"CNI file cut off":        {func(m *machine) { m.file("/net.d/00-first.conflist", `{"name":`) }, "network", Fail, "00-first.conflist"},
	"CNI plugin missing":      {func(m *machine) { m.remove("/cni/portmap") }, "network", Fail, "plugin portmap"},
	"no packet filter":        {func(m *machine) { m.remove("/machine/usr/sbin/iptables") }, "network", Fail, "portmap"},
	"IPAM plugin missing":     {func(m *machine) { m.remove("/cni/host-local") }, "network", Fail, "plugin host-local"},
	"runc missing":            {func(m *machine) { m.remove("/runc") }, "runtime", Fail, "handler runc"},
	"runc broken":             {func(m *machine) { m.program("/runc", "echo cannot execute >&2; exit 126") }, "runtime", Fail, "does not run"},
	"a handler's shim missing": {func(m *machine) {
		m.Config.Runtimes["kata"] = &config.Runtime{Type: "shim", Shim: "io.containerd.nope.v2"}
	}, "runtime", Fail, "handler kata: containerd-shim-nope-v2 is neither"},
	"shim missing":            {func(m *machine) { m.remove("/berth-shim") }, "runtime", Fail, "berth-shim"},
	"no default handler":      {func(m *machine) { m.Config.DefaultRuntime = "crun" }, "runtime", Fail, "crun"},
	"root open to everybody":  {func(m *machine) { m.chmod("/root", 0o711) }, "storage", Fail, "/root is open to everybody (mode 0711)"},
	"state open to everybody": {func(m *machine) { m.chmod("/state", 0o755) }, "storage", Fail, "/state is open to everybody (mode 0755)"},
	"records set aside":       {func(m *machine) { m.file("/root/quarantine/sandbox.json", "x") }, "leftover", Warn, "set aside"},
	"leaked namespace":        {func(m *machine) { m.file("/netns/berth-0123", ""); m.old("/netns/berth-0123") }, "leftover", Warn, "berth-0123"},
	"orphaned pod":            {func(m *machine) { m.file("/state/pods/0123/hostname", ""); m.old("/state/pods/0123") }, "leftover", Warn, "/state/pods/0123 belongs to no pod"},
	"orphaned writable layer": {func(m *machine) { m.file("/root/rootfs/4567/upper/x", ""); m.old("/root/rootfs/4567") }, "leftover", Warn, "/root/rootfs/4567"},
	"leaked mount": {func(m *machine) {
		m.mounted("/state/pods/0123/shm")
		m.old("/state/pods/0123")
	}, "leftover", Warn, "/state/pods/0123/shm belongs to no pod"},
	"leaked mount of a container": {func(m *machine) {
		gone := "/state/pods/known/" + strings.Repeat("4", 64)
		m.daemon.pods = []*runtimeapi.PodSandbox{{Id: "known"}}
		m.mounted(gone + "/rootfs")
		m.old(gone)
	}, "leftover", Warn, "the mount"},
	"network not given back": {func(m *machine) {
		m.file("/root/network/results/pods-0123-eth0", `{"kind":"cniCacheV1","containerId":"0123","networkName":"pods","ifName":"eth0"}`)
		m.old("/root/network/results/pods-0123-eth0")
	}, "leftover", Warn, "holds addresses for 0123"},
	"leaked address": {func(m *machine) {
		m.file("/machine/var/lib/cni/networks/pods/10.88.0.7", "0123\neth0")
		m.old("/machine/var/lib/cni/networks/pods/10.88.0.7")
	}, "leftover", Warn, "10.88.0.7 is held for 0123"},
	"disk nearly full":  {func(m *machine) { m.disk(func(st *syscall.Statfs_t) { st.Bavail = 120 }) }, "storage", Warn, "12 % of the space"},
	"disk full":         {func(m *machine) { m.disk(func(st *syscall.Statfs_t) { st.Bavail = 3 }) }, "storage", Fail, "0 % of the space"},
	"no inodes":         {func(m *machine) { m.disk(func(st *syscall.Statfs_t) { st.Ffree = 40 }) }, "storage", Fail, "4 % of the inodes"},
	"disk is read-only": {func(m *machine) { m.disk(func(st *syscall.Statfs_t) { st.Flags = syscall.MS_RDONLY }) }, "storage", Fail, "read-only"},
	"nothing can be made": {func(m *machine) {
		m.remove("/root", "/state")
		m.disk(func(st *syscall.Statfs_t) { st.Flags = syscall.MS_RDONLY })
	}, "storage", Fail, "read-only"},
	"CRIU of another kernel": {func(m *machine) {
		m.program("/machine/usr/sbin/criu", "echo 'Error (criu/kerndat.c:1): mmap_min_addr is low' >&2; exit 1")
	}, "checkpoint", Warn, "exit status 1: Error (criu/kerndat.c:1): mmap_min_addr is low"},
	"root on an overlay":  {func(m *machine) { m.disk(func(st *syscall.Statfs_t) { st.Type = 0x794c7630 }) }, "images", Fail, "lies on overlayfs"},
	"no EROFS":            {func(m *machine) { m.Config.Images.Snapshotter = "erofs" }, "images", Fail, "mounts no EROFS"},
	"unknown snapshotter": {func(m *machine) { m.Config.Images.Snapshotter = "stargz" }, "images", Fail, "stargz is none"},
	"snapshotter is dead": {func(m *machine) {
		m.Config.Snapshotters = map[string]*config.Snapshotter{"stargz": {Address: m.dir + "/stargz.sock"}}
	}, "images", Fail, "snapshotter stargz"},
	"clock runs free":   {func(m *machine) { m.fakeClock = func() (bool, error) { return false, nil } }, "clock", Warn, "clock"},
	"registry away":     {func(m *machine) { m.Registries = []string{"127.0.0.1:1"} }, "registry", Fail, "none of its 1 hosts"},
	"registry misspelt": {func(m *machine) { m.Registries = []string{"https://x"} }, "registry", Fail, "no registry's name"},
}

func TestAModuleThatIsNotLoadedYetIsThere(t *testing.T) {
	m := healthy(t)
	m.file("/machine/proc/filesystems", "ext4")
	m.file("/machine/lib/modules/6.12.41-cloud/modules.dep", "kernel/fs/overlayfs/overlay.ko.xz:\nkernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\n")
	m.Config.Images.Snapshotter = "erofs"
	if bad := problems(m.Doctor.Run(t.Context())); len(bad) > 0 {
		t.Errorf("found %+v", bad)
	}
}

func TestADaemonWithOtherFilesOrFlagsIsNotTakenForAnOldOne(t *testing.T) {
	for name, theirs := range map[string]config.Origins{
		"files elsewhere": {"log.level": "/tmp/other/config.toml:3"},
		"a flag":          {"log.level": "flag --log-level"},
	} {
		m := healthy(t)
		m.ConfigDir, m.Origins = "/etc/berth", config.Origins{"log.level": "/etc/berth/config.toml:3"}
		other := *m.Config
		other.Log.Level = "debug"
		m.inForce(&other, theirs)
		if bad := problems(m.Doctor.Run(t.Context())); len(bad) > 0 {
			t.Errorf("%s: %+v", name, bad)
		}
	}
}

func TestEachBrokenSetUpIsFoundAndNamed(t *testing.T) {
	for name, b := range broken {
		t.Run(name, func(t *testing.T) {
			m := healthy(t)
			b.ruin(m)
			all := m.Doctor.Run(t.Context())
			for _, f := range problems(all) {
				if f.Check == b.check && f.Level == b.level && strings.Contains(f.Text, b.names) {
					if f.Do == "" {
						t.Errorf("%+v does not say what to do", f)
					}
					return
				}
			}
			t.Errorf("not found: %+v", problems(all))
		})
	}
}

// A shim does not speak the command line of an OCI runtime.
func TestAShimIsAskedForNothing(t *testing.T) {
	m := healthy(t)
	m.program("/containerd-shim-kata-v2", "exit 1")
	m.Config.Runtimes["kata"] = &config.Runtime{Type: "shim", Path: m.dir + "/containerd-shim-kata-v2"}
	if bad := problems(m.Doctor.Run(t.Context())); len(bad) > 0 {
		t.Errorf("found %+v", bad)
	}
}

func TestTheNetworkTestTellsWhatThePluginSays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces are made by root only")
	}
	m := healthy(t)
	m.NetworkTest = true
	m.program("/cni/bridge", `case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
ADD) echo '{"cniVersion":"1.0.0","code":11,"msg":"the bridge is out"}'; exit 1 ;;
esac`)
	for _, f := range m.Doctor.Run(t.Context()) {
		if f.Check == "network" && f.Level == Fail && strings.Contains(f.Text, "the bridge is out") && f.Do != "" {
			return
		}
	}
	t.Errorf("not found: %+v", problems(m.found))
}

func TestPodsAndYoungThingsAreNoLeftOvers(t *testing.T) {
	m := healthy(t)
	container := strings.Repeat("c", 64)
	m.daemon.pods = []*runtimeapi.PodSandbox{{Id: "known"}}
	m.daemon.containers = []*runtimeapi.Container{{Id: container, PodSandboxId: "known"}}
	m.file("/netns/berth-known", "")
	m.mounted("/state/pods/known/" + container + "/rootfs")
	m.file("/root/rootfs/"+container+"/upper/x", "")
	m.file("/root/network/results/pods-known-eth0", `{"containerId":"known","networkName":"pods"}`)
	m.file("/root/network/results/pods-broken-eth0", `{`)
	m.file("/machine/var/lib/cni/networks/pods/10.88.0.2", "known\neth0")
	m.file("/machine/var/lib/cni/networks/pods/10.88.0.3", "others\neth0") // containerd's
	m.file("/machine/var/lib/cni/results/pods-others-eth0", "{}")
	m.file("/machine/var/lib/cni/networks/pods/last_reserved_ip.0", "10.88.0.3")
	for _, p := range []string{"/netns/berth-known", "/state/pods/known", "/state/pods/known/" + container, "/root/rootfs/" + container, "/root/network/results/pods-known-eth0",
		"/root/network/results/pods-broken-eth0", "/machine/var/lib/cni/networks/pods/10.88.0.2", "/machine/var/lib/cni/networks/pods/10.88.0.3",
		"/machine/var/lib/cni/networks/pods/last_reserved_ip.0"} {
		m.old(p)
	}
	m.file("/netns/berth-young", "")
	m.file("/root/network/results/pods-young-eth0", `{"containerId":"young","networkName":"pods"}`)
	m.file("/machine/var/lib/cni/networks/pods/10.88.0.4", "young\neth0")
	if bad := problems(m.Doctor.Run(t.Context())); len(bad) > 0 {
		t.Errorf("found %+v", bad)
	}
}

func TestFixDoesWhatIsSafe(t *testing.T) {
	m := healthy(t)
	m.file("/machine/proc/sys/net/ipv4/ip_forward", "0")
	m.chmod("/state", 0o777)
	m.chmod("/cri.sock", 0o666)
	m.remove("/cni/portmap") // nobody can fix that from here
	m.Doctor.Run(t.Context())
	all, err := m.Fix()
	if err != nil {
		t.Fatal(err)
	}
	fixed := 0
	for _, f := range all {
		if f.Fixed {
			fixed++
		}
	}
	if fixed != 3 || Worst(all) != Fail {
		t.Errorf("%d fixed, worst %s: %+v", fixed, Worst(all), problems(all))
	}
	m.program("/cni/portmap", "exit 0")
	if bad := problems(m.Doctor.Run(t.Context())); len(bad) > 0 {
		t.Errorf("after the fix: %+v", bad)
	}
	for path, want := range map[string]os.FileMode{"/state": 0o711, "/cri.sock": 0o660} {
		if info, err := os.Stat(m.dir + path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestMirrorsAreAskedInTheirOrder(t *testing.T) {
	ask := func(status int) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		t.Cleanup(s.Close)
		return s
	}
	dead, good, origin := ask(http.StatusBadGateway), ask(http.StatusUnauthorized), ask(http.StatusOK)
	m := healthy(t)
	m.Registries = []string{"docker.io"}
	m.file("/certs.d/docker.io/hosts.toml", fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n", origin.URL, dead.URL, good.URL))
	var said []string
	for _, f := range m.Doctor.Run(t.Context()) {
		if f.Check == "registry" {
			said = append(said, string(f.Level)+" "+f.Text)
		}
	}
	if len(said) != 3 || !strings.HasPrefix(said[0], "warn") || !strings.Contains(said[0], dead.URL) || !strings.Contains(said[1], "401") || !strings.Contains(said[2], origin.URL) {
		t.Errorf("said %q", said)
	}
}

func TestKernelVersions(t *testing.T) {
	for release, want := range map[string][2]int{"6.12.41-cloud": {6, 12}, "5.10-rc1": {5, 10}, "4.18.0": {4, 18}, "": {}, "x.y": {}} {
		if got := kernelVersion(release); got != want {
			t.Errorf("%q is %v", release, got)
		}
	}
}
