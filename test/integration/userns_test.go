// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// mappedTo are the host's IDs of the root of the pods here.
const mappedTo = 1 << 20

func mapped() *cri.UserNamespace {
	mapping := func() []*cri.IDMapping { return []*cri.IDMapping{{HostId: mappedTo, Length: 65536}} }
	return &cri.UserNamespace{Uids: mapping(), Gids: mapping()}
}

// mappedPod is the configuration of a pod with a user namespace, and what its containers say.
func mappedPod(k *kubelet.Kubelet, name string) (*cri.PodSandboxConfig, func(*cri.ContainerConfig) *cri.ContainerConfig) {
	config := k.PodConfig(name)
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = mapped()
	return config, func(c *cri.ContainerConfig) *cri.ContainerConfig {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = mapped()
		return c
	}
}

func TestAPodHasItsOwnUserNamespace(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config, in := mappedPod(k, "mapped")
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
	p := k.RunPod(config)
	c := p.Start(in(k.Forever("main")))
	equal(t, "mapping", strings.Join(strings.Fields(c.Exec("cat /proc/self/uid_map /proc/self/gid_map")), " "),
		fmt.Sprintf("0 %d 65536 0 %[1]d 65536", mappedTo))
	equal(t, "user", c.Exec("id -u"), "0")
	process, err := os.Stat(fmt.Sprintf("/proc/%d", pidOf(t, c)))
	if err != nil || process.Sys().(*syscall.Stat_t).Uid != mappedTo {
		t.Errorf("the process is user %v on the host, %v", process, err)
	}
	equal(t, "owners in the image", c.Exec("stat -c %u:%g / /bin /bin/busybox /etc/passwd | sort -u"), "0:0")
	equal(t, "writable layer", c.Exec("touch /new && chown 1000:1000 /new && stat -c %u:%g /new && mkdir -p /bin/sub && stat -c %u /bin/sub"), "1000:1000\n0")
	upper := filepath.Join(k.D.Root, "rootfs", c.ID, "upper", "new")
	if onContainerd() {
		upper = ""
	}
	if written, err := os.Stat(upper); upper != "" && (err != nil || written.Sys().(*syscall.Stat_t).Uid != mappedTo+1000) {
		t.Errorf("%s: %v, %v", upper, written, err)
	}
	equal(t, "owners of what the pod has", c.Exec("stat -c %u:%g /etc/resolv.conf /etc/hostname /dev/shm"), "0:0\n0:0\n0:0")
	equal(t, "without NET_ADMIN", c.Exec("ip link set lo down 2>/dev/null || echo refused; hostname"), "refused\nmapped")
	equal(t, "stdout can be opened", c.Exec("echo x >/dev/stdout"), "x")
	equal(t, "sysctls", c.Exec("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"), "80\n1")
	equal(t, "/proc/sys", c.Exec("echo 1 >/proc/sys/kernel/panic 2>/dev/null || echo refused"), "refused")
	contains(t, "mounts", c.Exec("cat /proc/mounts"), " /sys sysfs ro", " /dev/mqueue mqueue", " /sys/fs/cgroup ", " /proc proc ")

	user := in(k.Forever("user"))
	user.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	equal(t, "a user's stdout", p.Start(user).Exec("id -u; echo x >/dev/stdout"), "1000\nx")
	log := in(k.Shell("log", "echo to the log >/dev/stdout"))
	made := p.Start(log)
	equal(t, "exit code", made.WaitExit().ExitCode, 0)
	equal(t, "log", strings.TrimSpace(made.Output("stdout")), "to the log")
	r, err := k.D.Runtime.Status(k.Ctx(), &cri.StatusRequest{})
	if err != nil || !r.GetFeatures().GetUserNamespacesHostNetwork() || len(r.RuntimeHandlers) == 0 {
		t.Fatalf("features: %v, %v", r, err)
	}
	for _, h := range r.RuntimeHandlers {
		if !h.GetFeatures().GetUserNamespaces() {
			t.Errorf("handler %q reports no user namespaces", h.Name)
		}
	}
}

func TestAUserNamespaceOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config, in := mappedPod(k, "outlives")
	p := k.RunPod(config)
	first := p.Start(in(k.Forever("first")))
	want := first.Exec("cat /proc/self/uid_map; readlink /proc/self/ns/user")
	if err := k.D.Restart(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	equal(t, "a container of before", first.Exec("cat /proc/self/uid_map; readlink /proc/self/ns/user"), want)
	equal(t, "a container of after", p.Start(in(k.Forever("second"))).Exec("cat /proc/self/uid_map; readlink /proc/self/ns/user"), want)
	equal(t, "the status", p.Status().GetLinux().GetNamespaces().GetOptions().GetUsernsOptions().String(), mapped().String())
}

func TestCapabilitiesInAUserNamespaceAreForItsOwn(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config, in := mappedPod(k, "capable")
	config.Linux.SecurityContext.Privileged = true
	spec := in(k.Forever("main"))
	spec.Linux.SecurityContext.Privileged, spec.Linux.SecurityContext.Seccomp = true, nil
	c := k.RunPod(config).Start(spec)
	equal(t, "own network", c.Exec("ip link add br9 type bridge && ip link set br9 up && echo made"), "made")
	equal(t, "own mounts", c.Exec("mkdir /m && mount -t tmpfs none /m && echo mounted"), "mounted")
	equal(t, "the host's settings", c.Exec("echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused"), "refused")
	equal(t, "the host's devices", c.Exec("mknod /null c 1 3 2>/dev/null || echo refused"), "refused")
}

func TestAUserNamespaceWithASharedPIDNamespace(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config, in := mappedPod(k, "shared")
	config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	p := k.RunPod(config)
	shared := func(c *cri.ContainerConfig) *cri.ContainerConfig {
		in(c).Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		return c
	}
	p.Start(shared(k.Shell("other", "exec sleep 12345")))
	c := p.Start(shared(k.Forever("main")))
	contains(t, "processes", c.Exec("ps"), "pause", "sleep 12345")
	equal(t, "PID 1 is not root", c.Exec("stat -c %u /proc/1"), "65535")
}

// The host's network with a user namespace: no sysfs can be mounted, and the network cannot be changed.
func TestAUserNamespaceWithTheHostsNetwork(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config, in := mappedPod(k, "hostnet")
	config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	config.Hostname = ""
	spec := in(k.Forever("main"))
	spec.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	spec.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	c := k.RunPod(config).Start(spec)
	if host, err := os.Readlink("/proc/self/ns/net"); err != nil || host != c.Exec("readlink /proc/self/ns/net") {
		t.Errorf("it is not in the host's network namespace: %v", err)
	}
	equal(t, "the host's network", c.Exec("ip link add br9 type bridge 2>/dev/null || echo refused"), "refused")
	equal(t, "/sys", c.Exec("ls /sys/class/net >/dev/null && touch /sys/x 2>/dev/null || echo ro"), "ro")
}

func TestProcMountUnmasked(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config, in := mappedPod(k, "unmasked")
	spec := in(k.Forever("main"))
	spec.Linux.SecurityContext.MaskedPaths, spec.Linux.SecurityContext.ReadonlyPaths = nil, nil
	c := k.RunPod(config).Start(spec)
	equal(t, "mounts on /proc", c.Exec("grep -c ' /proc/' /proc/mounts || true"), "0")
	plain := k.Forever("plain")
	plain.Linux.SecurityContext.MaskedPaths, plain.Linux.SecurityContext.ReadonlyPaths = nil, nil
	c = k.RunPod(k.PodConfig("plain")).Start(plain)
	contains(t, "mounts on /proc without a user namespace", c.Exec("cat /proc/mounts"), " /proc/bus ", " /proc/sys ")
}

func TestVolumesOfAUserNamespace(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	tree.Dir("data", 0o755)
	tree.File("data/f", []byte("from the image"), 0o644)
	ref, _ := images.MustPush(t, "volumes-mapped:1", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{tree},
		Config: v1.Config{Volumes: map[string]struct{}{"/data": {}, "/empty": {}}}}))
	id := k.Pull(ref)
	closed := filepath.Join(k.D.Dir, "closed") // as the kubelet's folders are
	vol := filepath.Join(closed, "vol")
	for dir, mode := range map[string]os.FileMode{closed: 0o750, vol: 0o755} {
		if err := os.Mkdir(dir, mode); err != nil && !os.IsExist(err) {
			if err := os.MkdirAll(dir, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	config, in := mappedPod(k, "volumes")
	spec := in(k.Forever("main"))
	spec.Image.Image = id
	m := mapped()
	spec.Mounts = []*cri.Mount{
		{HostPath: vol, ContainerPath: "/vol", UidMappings: m.Uids, GidMappings: m.Gids},
		{HostPath: vol, ContainerPath: "/raw"},
		{ContainerPath: "/image", Readonly: true, Image: &cri.ImageSpec{Image: id}, UidMappings: m.Uids, GidMappings: m.Gids},
	}
	c := k.RunPod(config).Start(spec)
	equal(t, "mapped volume", c.Exec("touch /vol/f && chown 1000 /vol/f && stat -c %u /vol/f"), "1000")
	equal(t, "volume without mappings", c.Exec("stat -c %u /raw/f; touch /raw/g 2>/dev/null || echo refused"), "65534\nrefused")
	if f, err := os.Stat(vol + "/f"); err != nil || f.Sys().(*syscall.Stat_t).Uid != 1000 {
		t.Errorf("on the host: %v, %v", f, err)
	}
	equal(t, "image volume", c.Exec("stat -c %u /image/bin/busybox && /image/bin/busybox echo ran"), "0\nran")
	equal(t, "anonymous volumes", c.Exec("stat -c %u /data /data/f /empty; cat /data/f; touch /data/g /empty/g && echo written"),
		"0\n0\n0\nfrom the imagewritten")
}

func TestUserNamespacesThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	for name, c := range map[string]struct {
		edit func(*cri.NamespaceOption)
		want string
	}{
		"two ranges": {func(o *cri.NamespaceOption) {
			o.UsernsOptions.Uids = append(o.UsernsOptions.Uids, &cri.IDMapping{HostId: 1, ContainerId: 65536, Length: 1})
		}, "uids"},
		"no group":        {func(o *cri.NamespaceOption) { o.UsernsOptions.Gids = nil }, "gids"},
		"of a container":  {func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_CONTAINER }, "mode"},
		"host's PIDs":     {func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE }, "PID"},
		"host's IPC":      {func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE }, "IPC"},
		"node with a map": {func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_NODE }, "NODE"},
	} {
		config, _ := mappedPod(k, strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", ""))
		c.edit(config.Linux.SecurityContext.NamespaceOptions)
		_, err := k.TryRunPod(config)
		if err == nil && onContainerd() {
			continue
		}
		wantError(t, err, []codes.Code{codes.InvalidArgument, codes.Unknown}, "userns_options", c.want)
	}
	config, in := mappedPod(k, "pod")
	p := k.RunPod(config)
	_, err := p.TryCreate(k.Forever("unmapped"))
	wantError(t, err, []codes.Code{codes.InvalidArgument, codes.Unknown}, "userns_options", "the host's user namespace")
	spec := in(k.Forever("other"))
	spec.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids[0].HostId++
	_, err = p.TryCreate(spec)
	wantError(t, err, []codes.Code{codes.InvalidArgument, codes.Unknown}, "userns_options", "other mappings")
	spec = in(k.Forever("user"))
	spec.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 65536}
	_, err = p.TryCreate(spec)
	wantError(t, err, []codes.Code{codes.InvalidArgument, codes.Unknown}, "UID 65536", "user namespace")
}
