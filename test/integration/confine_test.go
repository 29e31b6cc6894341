// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// privilegedPod is a pod whose containers may be privileged.
func privilegedPod(k *kubelet.Kubelet, name string) *kubelet.Pod {
	config := k.PodConfig(name)
	config.Linux.SecurityContext.Privileged = true
	return k.RunPod(config)
}

func privileged(k *kubelet.Kubelet, name string) *cri.ContainerConfig {
	c := k.Forever(name)
	c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{Privileged: true, NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}
	return c
}

func makeNode(t *testing.T, path string, major, minor int) {
	t.Helper()
	if err := syscall.Mknod(path, syscall.S_IFCHR|0o600, major<<8|minor); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
}

func TestDevicesAreThoseOfTheMoment(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := privilegedPod(k, "devices")
	late := "/dev/bt-" + filepath.Base(k.D.Dir)
	c := p.Start(privileged(k, "before"))
	equal(t, "before it exists", c.Exec("test -e "+late+" || echo none"), "none")
	makeNode(t, late, 1, 5)
	c = p.Start(privileged(k, "after"))
	equal(t, "a device that came after the daemon", c.Exec("head -c 4 "+late+" | wc -c"), "4")
	equal(t, "terminals of the host", c.Exec("ls /dev/console 2>/dev/null || echo none"), "none")
}

func TestADeviceFolderIsGivenWithOwnersAndRules(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{Global: "device_ownership_from_security_context = true"})
	dir := filepath.Join(k.D.Dir, "devs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	makeNode(t, dir+"/zero", 1, 5)
	makeNode(t, dir+"/fuse", 10, 229)
	spec := k.Forever("main")
	spec.Linux.SecurityContext.RunAsUser, spec.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1234}, &cri.Int64Value{Value: 2345}
	spec.Devices = []*cri.Device{{HostPath: dir, ContainerPath: "/dev/mine", Permissions: "r"}}
	c := k.RunPod(k.PodConfig("folder")).Start(spec)
	equal(t, "owners", c.Exec("stat -c %u:%g /dev/mine/zero /dev/mine/fuse"), "1234:2345\n1234:2345")
	equal(t, "reading", c.Exec("head -c 3 /dev/mine/zero | wc -c"), "3")
	equal(t, "opening to read", c.Exec("(: </dev/mine/fuse) 2>/dev/null && echo allowed"), "allowed")
	equal(t, "opening to write, which the rule denies", c.Exec("(: >/dev/mine/fuse) 2>/dev/null || echo denied"), "denied")
}

func TestPrivilegedWithoutHostDevices(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{Runc: "privileged_without_host_devices = true"})
	late := "/dev/bt-" + filepath.Base(k.D.Dir)
	makeNode(t, late, 1, 5)
	c := privilegedPod(k, "bare").Start(privileged(k, "main"))
	equal(t, "host's device", c.Exec("test -e "+late+" || echo none"), "none")
	equal(t, "kmsg, made by hand", c.Exec("mknod /tmp/kmsg c 1 11 && (head -c 1 /tmp/kmsg 2>/dev/null || echo denied)"), "denied")
	equal(t, "privileged all the same", c.Exec("mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo ok"), "ok")
}

// limitsOf reads /proc/1/limits of a container, its columns parted by single spaces.
func limitsOf(c *kubelet.Container) string {
	var lines []string
	for line := range strings.Lines(c.Exec("cat /proc/1/limits")) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

func TestLimitsDoNotFollowTheDaemonsUnit(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	// Soft limits only: what the hard ones are lowered to a process without CAP_SYS_RESOURCE cannot raise again.
	low := []string{"/usr/bin/prlimit", "--nofile=5000:", "--core=0:", "--stack=1048576:", "--nproc=4000:", "--memlock=65536:", "--fsize=1000000000:"}
	var got []string
	for _, launcher := range [][]string{nil, low} {
		k := node(t, daemon.Spec{Launcher: launcher})
		c := k.RunPod(k.PodConfig("limits")).Start(k.Forever("main"))
		got = append(got, limitsOf(c))
		equal(t, "of an exec", c.Exec("ulimit -n"), c.Exec("ulimit -Hn"))
	}
	equal(t, "limits under a daemon with low ones", got[1], got[0])
	contains(t, "limits", got[0], "Max core file size unlimited", "Max stack size 8388608", "Max nice priority 0 0")
}

func TestALocalSeccompProfileConfines(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	profile := filepath.Join(k.D.Dir, "profile.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(profile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`)
	spec := k.Forever("local")
	spec.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: profile}
	p := k.RunPod(k.PodConfig("seccomp"))
	contains(t, "mkdir", p.Start(spec).Exec("mkdir /tmp/x 2>&1 || true"), "not supported")

	bad := k.Forever("bad")
	bad.Linux.SecurityContext.Seccomp = spec.Linux.SecurityContext.Seccomp
	write(`{"defaultAction":"SCMP_ACT_SOMETHING"}`)
	_, err := p.TryCreate(bad)
	wantError(t, err, append(invalid, failures...), "SCMP_ACT_SOMETHING", profile)
	write(fmt.Sprintf(`{"defaultAction":"SCMP_ACT_ALLOW","x":%q}`, strings.Repeat("x", 1<<20)))
	if !onContainerd() {
		_, err = p.TryCreate(bad)
		wantError(t, err, invalid, "more than 1048576 bytes")
	}
}
