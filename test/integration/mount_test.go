// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// volume is a tmpfs of the host with the mount flags given, and the propagation.
func volume(t *testing.T, k *kubelet.Kubelet, name string, flags, propagation uintptr) string {
	t.Helper()
	dir := filepath.Join(k.D.Dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", flags&^syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	if err := os.WriteFile(dir+"/script", []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if flags&syscall.MS_RDONLY != 0 {
		if err := syscall.Mount("", dir, "", flags|syscall.MS_REMOUNT|syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("", dir, "", propagation, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// flagsOf are the options of a mount as the container sees it.
func flagsOf(c *kubelet.Container, at string) string {
	return "," + c.Exec(fmt.Sprintf("awk '$2 == %q {print $4}' /proc/mounts", at)) + ","
}

func TestMountOptionsOfTheRequestAndOfTheHostApply(t *testing.T) {
	t.Parallel()
	berthOnly(t) // containerd drops the host's flags, and knows no mount_options
	k := node(t, daemon.Spec{})
	plain := volume(t, k, "plain", 0, syscall.MS_PRIVATE)
	strict := volume(t, k, "strict", syscall.MS_NOSUID|syscall.MS_NOEXEC, syscall.MS_PRIVATE)
	closed := volume(t, k, "closed", syscall.MS_RDONLY, syscall.MS_PRIVATE)
	spec := k.Forever("main")
	spec.Mounts = []*cri.Mount{
		{HostPath: plain, ContainerPath: "/plain"},
		{HostPath: plain, ContainerPath: "/asked", MountOptions: []string{"noexec", "nosuid", "nodev"}},
		{HostPath: plain, ContainerPath: "/both", Readonly: true, MountOptions: []string{"noexec"}},
		{HostPath: strict, ContainerPath: "/strict", Readonly: true},
		{HostPath: closed, ContainerPath: "/closed"},
	}
	c := k.RunPod(k.PodConfig("options")).Start(spec)
	for at, want := range map[string]struct{ has, lacks string }{
		"/plain": {"rw", "noexec nosuid nodev"}, "/asked": {"rw noexec nosuid nodev", ""}, "/both": {"ro noexec", "nosuid"},
		"/strict": {"ro noexec nosuid", "nodev"}, "/closed": {"ro", "noexec"},
	} {
		flags := flagsOf(c, at)
		for _, f := range strings.Fields(want.has) {
			contains(t, at, flags, ","+f+",")
		}
		for _, f := range strings.Fields(want.lacks) {
			if strings.Contains(flags, ","+f+",") {
				t.Errorf("%s is mounted %s", at, flags)
			}
		}
	}
	equal(t, "script of a plain volume", c.Exec("/plain/script"), "ran")
	equal(t, "script of a noexec volume", c.Exec("/asked/script 2>/dev/null || echo refused"), "refused")
	spec = k.Forever("gives")
	spec.Mounts = []*cri.Mount{{HostPath: strict, ContainerPath: "/s", MountOptions: []string{"exec"}}}
	_, err := k.RunPod(k.PodConfig("gives")).TryCreate(spec)
	wantError(t, err, []codes.Code{codes.InvalidArgument}, "mounts[0].mount_options[0]", "noexec")
	r, err := k.D.Runtime.Status(k.Ctx(), &cri.StatusRequest{})
	if err != nil || !r.GetFeatures().GetMountOptions() {
		t.Errorf("features: %v, %v", r.GetFeatures(), err)
	}
}

func TestPropagationNeedsASourceThatTakesPart(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	private := volume(t, k, "private", 0, syscall.MS_PRIVATE)
	slave := volume(t, k, "slave", 0, syscall.MS_SHARED)
	peer := filepath.Join(k.D.Dir, "peer")
	if err := os.Mkdir(peer, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(slave, peer, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(peer, syscall.MNT_DETACH) })
	if err := syscall.Mount("", slave, "", syscall.MS_SLAVE, ""); err != nil {
		t.Fatal(err)
	}
	config := k.PodConfig("propagation")
	config.Linux.SecurityContext.Privileged = true
	p := k.RunPod(config)
	for i, c := range []struct {
		source string
		mode   cri.MountPropagation
		want   string
	}{
		{private, cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, "neither shared nor a slave"},
		{private, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, "not shared"},
		{slave, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, "not shared"},
		{slave, cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, ""},
		{peer, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, ""},
	} {
		spec := k.Forever(fmt.Sprint("c", i))
		spec.Linux.SecurityContext.Privileged = true
		spec.Mounts = []*cri.Mount{{HostPath: c.source, ContainerPath: "/v", Propagation: c.mode}}
		_, err := p.TryCreate(spec)
		if c.want == "" && err != nil {
			t.Errorf("%s %s: %v", c.source, c.mode, err)
		} else if c.want != "" {
			wantError(t, err, []codes.Code{codes.InvalidArgument, codes.Unknown}, "mounts[0] /v", c.source, c.want)
		}
	}
}

func TestReadOnlyMountsRecursivelyAndNot(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	vol := volume(t, k, "vol", 0, syscall.MS_PRIVATE)
	if err := os.Mkdir(vol+"/sub", 0o777); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", vol+"/sub", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(vol+"/sub", syscall.MNT_DETACH) })
	spec := k.Forever("main")
	spec.Mounts = []*cri.Mount{
		{HostPath: vol, ContainerPath: "/ro", Readonly: true},
		{HostPath: vol, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
	}
	p := k.RunPod(k.PodConfig("readonly"))
	c := p.Start(spec)
	equal(t, "read-only", c.Exec("touch /ro/x 2>/dev/null || echo refused"), "refused")
	equal(t, "below a read-only mount", c.Exec("touch /ro/sub/x && echo written"), "written")
	equal(t, "below a recursively read-only mount", c.Exec("touch /rro/sub/x 2>/dev/null || echo refused"), "refused")
	for i, m := range []*cri.Mount{
		{RecursiveReadOnly: true},
		{RecursiveReadOnly: true, Readonly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{RecursiveReadOnly: true, Readonly: true, Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
	} {
		spec := k.Forever(fmt.Sprint("bad", i))
		m.HostPath, m.ContainerPath = vol, "/v"
		spec.Mounts = []*cri.Mount{m}
		_, err := p.TryCreate(spec)
		wantError(t, err, []codes.Code{codes.InvalidArgument, codes.Unknown}, "mounts[0].recursive_read_only", "/v")
	}
}

// Without a user namespace of its own, a container sees a mount's owners mapped as the request says.
func TestSingleMountsAreMapped(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	vol := volume(t, k, "vol", 0, syscall.MS_PRIVATE)
	if err := os.Chown(vol+"/script", 1000, 1000); err != nil {
		t.Fatal(err)
	}
	mapping := []*cri.IDMapping{{HostId: 3000, ContainerId: 1000, Length: 10}, {HostId: 0, ContainerId: 0, Length: 1}}
	spec := k.Forever("main")
	spec.Mounts = []*cri.Mount{{HostPath: vol, ContainerPath: "/v", UidMappings: mapping, GidMappings: mapping}, {HostPath: vol, ContainerPath: "/plain"}}
	c := k.RunPod(k.PodConfig("mapped")).Start(spec)
	equal(t, "owner", c.Exec("stat -c %u:%g /v/script /plain/script"), "3000:3000\n1000:1000")
	c.Exec("touch /v/new && chown 3001:3001 /v/new")
	if info, err := os.Stat(vol + "/new"); err != nil || info.Sys().(*syscall.Stat_t).Uid != 1001 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestSharedMemoryIsThePodsAndOfItsSize(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("shm")).Start(k.Forever("main"))
	equal(t, "size in KiB", c.Exec("df -k /dev/shm | awk 'NR == 2 {print $2}'"), "65536")
	flags := flagsOf(c, "/dev/shm")
	contains(t, "/dev/shm", flags, ",nosuid,", ",nodev,", ",noexec,")
	equal(t, "mode", c.Exec("stat -c %a /dev/shm"), "1777")
}

func TestAMissingHostPathIsAnErrorAndNotMade(t *testing.T) {
	t.Parallel()
	berthOnly(t) // containerd makes a folder
	k := node(t, daemon.Spec{})
	spec := k.Forever("main")
	missing := filepath.Join(k.D.Dir, "missing")
	spec.Mounts = []*cri.Mount{{HostPath: missing, ContainerPath: "/v"}}
	_, err := k.RunPod(k.PodConfig("missing")).TryCreate(spec)
	wantError(t, err, []codes.Code{codes.InvalidArgument}, "mounts[0] /v: host_path", missing, "no such file")
	if _, err := os.Lstat(missing); !os.IsNotExist(err) {
		t.Errorf("it was made: %v", err)
	}
}

// What an image puts at a mount's place, or on the way to it, does not lead out of its root (runc CVE-2021-30465, CVE-2019-16884).
func TestMountTargetsThatAreLinksStayInTheRoot(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	outside := filepath.Join(k.D.Dir, "outside")
	if err := os.MkdirAll(outside+"/dir", 0o777); err != nil {
		t.Fatal(err)
	}
	vol := volume(t, k, "vol", 0, syscall.MS_PRIVATE)
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	var evil registry.Tree
	for name, to := range map[string]string{"abs": outside + "/dir", "up": "../../../../../../.." + outside + "/dir", "parent": outside,
		"proc-link": "/proc/self/root" + outside + "/dir"} {
		evil.Symlink(name, to)
	}
	ref, _ := images.MustPush(t, "links:1", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{tree, evil}}))
	k.Image = k.Pull(ref)
	p := k.RunPod(k.PodConfig("links"))
	for i, target := range []string{"/abs", "/up", "/parent/new", "/proc-link"} {
		spec := k.Forever(fmt.Sprint("c", i))
		spec.Mounts = []*cri.Mount{{HostPath: vol, ContainerPath: target}}
		c := p.Create(spec)
		if err := c.TryStart(); err == nil && target != "/proc-link" { // refused is fine, too
			equal(t, target, c.Exec("cat "+target+"/script >/dev/null && echo mounted"), "mounted")
		}
	}
	host, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(host), " "+outside) {
		t.Errorf("something was mounted outside of the root:\n%s", host)
	}
	entries, err := os.ReadDir(outside)
	if inner, _ := os.ReadDir(outside + "/dir"); err != nil || len(entries) != 1 || len(inner) != 0 {
		t.Errorf("something was made outside of the root: %v, %v, %v", entries, inner, err)
	}
}

// A file descriptor of the runtime's as working directory would be a way to the host (runc CVE-2024-21626).
func TestAWorkingDirectoryIsNotTheHosts(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("cwd"))
	for fd := range 12 {
		spec := k.Shell(fmt.Sprint("c", fd), "pwd; ls ../../../../../../.."+k.D.Dir+" && echo ESCAPED")
		spec.WorkingDir = fmt.Sprintf("/proc/self/fd/%d", fd)
		c := p.Create(spec)
		if err := c.TryStart(); err != nil {
			continue // refused is right
		}
		c.WaitExit()
		if out := c.Output("stdout"); strings.Contains(out, "ESCAPED") {
			t.Errorf("%s leads to the host: %s", spec.WorkingDir, out)
		}
	}
	c := p.Start(k.Forever("exec"))
	if r, err := c.ExecSync(30, "sh", "-c", "ls ../../../../../.."+k.D.Dir+" && echo ESCAPED"); err == nil && strings.Contains(string(r.Stdout), "ESCAPED") {
		t.Error("an exec has the host's files in its working directory's parents")
	}
}

// The kernel looks through all mounts at each mount and unmount: they must not grow with what is done in a container.
func TestHostMountsAreOneForAContainerAndNoneForAnExec(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	mounts := func() int {
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(data)) {
			if strings.HasPrefix(strings.Fields(line)[4], k.D.Dir+"/") {
				n++
			}
		}
		return n
	}
	p := k.RunPod(k.PodConfig("mounts"))
	vol := filepath.Join(k.D.Dir, "vol")
	if err := os.Mkdir(vol, 0o755); err != nil {
		t.Fatal(err)
	}
	pod := mounts()
	var c *kubelet.Container
	for i := range 3 {
		spec := k.Forever(fmt.Sprint("c", i))
		for j := range 5 {
			spec.Mounts = append(spec.Mounts, &cri.Mount{HostPath: vol, ContainerPath: fmt.Sprint("/v", j)})
		}
		c = p.Start(spec)
		equal(t, "mounts of the containers", mounts()-pod, i+1)
	}
	running := mounts()
	for range 10 {
		c.Exec("true")
	}
	equal(t, "mounts after execs", mounts(), running)
	c.Remove()
	equal(t, "mounts after a removal", mounts(), running-1)
}
