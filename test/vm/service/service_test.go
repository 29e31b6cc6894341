// SPDX-License-Identifier: Apache-2.0

// Package service tests Berth as `make install` installs it: a unit of a real systemd, on a machine that is really rebooted. It changes the
// machine, so it runs in the one of `make test-vm` only: TestBeforeTheReboot, a reboot, TestAfterTheReboot, a power cut, TestAfterThePowerCut.
package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

const (
	installed = "/berth/install" // of make install DESTDIR=…, on the payload disk
	socket    = "/run/berth/berth.sock"
	leases    = "/var/lib/cni/networks/service"
	// acrossReboot holds what TestAfterTheReboot looks for.
	acrossReboot = "/var/lib/berth-service-test.json"
)

const conflist = `{"cniVersion": "1.1.0", "name": "service", "plugins": [
  {"type": "bridge", "bridge": "svc0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

func TestMain(m *testing.M) {
	if os.Getenv("BERTH_VM") == "" {
		return
	}
	os.Exit(m.Run())
}

// pods are those that live when the machine goes down.
type pods struct{ Sandbox, Container, Cgroup string }

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func install(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", installed+"/.", "/").CombinedOutput(); err != nil {
		t.Fatalf("install: %v: %s", err, out)
	}
	for path, text := range map[string]string{"/etc/cni/net.d/10-service.conflist": conflist, "/etc/berth/config.toml": "version = 1\n"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	systemctl(t, "daemon-reload")
}

func attach(t *testing.T) *kubelet.Kubelet {
	t.Helper()
	d, err := daemon.Attach(socket)
	if err != nil {
		t.Fatal(err)
	}
	return &kubelet.Kubelet{T: t, D: d}
}

// mainPID is the daemon's.
func mainPID(t *testing.T) string {
	t.Helper()
	return strings.TrimPrefix(systemctl(t, "show", "--property=MainPID", "berth"), "MainPID=")
}

func TestBeforeTheReboot(t *testing.T) {
	install(t)
	systemctl(t, "enable", "--now", "berth") // returns when the daemon has said that it is ready
	k := attach(t)
	if r, err := k.D.Runtime.Version(k.Ctx(), &cri.VersionRequest{}); err != nil || r.RuntimeName != "berth" {
		t.Fatalf("ready, but: %v, %v", r, err)
	}
	if err := k.D.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	r, err := k.D.Runtime.RuntimeConfig(k.Ctx(), &cri.RuntimeConfigRequest{})
	if err != nil || r.GetLinux().GetCgroupDriver() != cri.CgroupDriver_SYSTEMD {
		t.Fatalf("driver is %v, %v: systemd runs the machine", r.GetLinux().GetCgroupDriver(), err)
	}
	images, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	busybox, err := registry.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	ref, _, err := images.Push("busybox:1", busybox)
	if err != nil {
		t.Fatal(err)
	}
	k.Image = k.Pull(ref)

	c := start(k)
	pid := inside(c)
	t.Run("layers", layersAreFiles)
	t.Run("restart", func(t *testing.T) {
		before := mainPID(t)
		systemctl(t, "restart", "berth")
		if now := mainPID(t); now == before {
			t.Errorf("the daemon is still %s", now)
		}
		c.lives(t, pid)
	})
	t.Run("reload", func(t *testing.T) {
		before := mainPID(t)
		systemctl(t, "reload", "berth")
		if now := mainPID(t); now != before {
			t.Errorf("the daemon was %s, is %s", before, now)
		}
		c.lives(t, pid)
	})
	t.Run("crash", func(t *testing.T) {
		before := mainPID(t)
		systemctl(t, "kill", "--kill-whom=main", "--signal=KILL", "berth")
		kubelet.Eventually(t, 10*time.Second, func() string {
			out, _ := exec.Command("systemctl", "is-active", "berth").Output()
			if now := mainPID(t); now == before || now == "0" || strings.TrimSpace(string(out)) != "active" {
				return fmt.Sprintf("the daemon is %s, %s", now, out)
			}
			return ""
		})
		c.lives(t, pid)
		layersAreFiles(t)
	})
	t.Run("stop and start", func(t *testing.T) {
		systemctl(t, "stop", "berth")
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("the container while berth is stopped: %v", err)
		}
		systemctl(t, "start", "berth")
		c.lives(t, pid)
	})
	remember(t, c)
}

// layersAreFiles checks that this kernel's layers are EROFS files by default, and that nobody sees where they are mounted.
func layersAreFiles(t *testing.T) {
	blobs, err := filepath.Glob("/var/lib/berth/image/overlayfs/snapshots/*/layer.erofs")
	if err != nil || len(blobs) == 0 {
		t.Errorf("EROFS files: %v, %v", blobs, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - erofs ") || strings.Contains(line, " - tmpfs layers ") {
			t.Errorf("mounted: %s", line)
		}
	}
}

// container is one that outlives the test that made it.
type container struct {
	*kubelet.Kubelet
	pods
}

// start runs a pod that no clean-up removes.
func start(k *kubelet.Kubelet) container {
	k.T.Helper()
	config := k.PodConfig("service")
	if err := os.MkdirAll(config.LogDirectory+"/main", 0o755); err != nil {
		k.T.Fatal(err)
	}
	p, err := k.D.Runtime.RunPodSandbox(k.Ctx(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		k.T.Fatal(err)
	}
	c, err := k.D.Runtime.CreateContainer(k.Ctx(), &cri.CreateContainerRequest{PodSandboxId: p.PodSandboxId, Config: k.Forever("main"), SandboxConfig: config})
	if err != nil {
		k.T.Fatal(err)
	}
	if _, err := k.D.Runtime.StartContainer(k.Ctx(), &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		k.T.Fatal(err)
	}
	return container{k, pods{Sandbox: p.PodSandboxId, Container: c.ContainerId, Cgroup: config.Linux.CgroupParent}}
}

// inside is the PID of the container's init on the host.
func inside(c container) int {
	c.T.Helper()
	r, err := c.D.Runtime.ContainerStatus(c.Ctx(), &cri.ContainerStatusRequest{ContainerId: c.Container, Verbose: true})
	var info struct{ PID int }
	if err == nil {
		err = json.Unmarshal([]byte(r.GetInfo()["info"]), &info)
	}
	if err != nil || info.PID == 0 {
		c.T.Fatalf("container's PID: %v in %v", err, r.GetInfo())
	}
	return info.PID
}

// lives checks that the container is the same process, and that one can be run beside it.
func (c container) lives(t *testing.T, pid int) {
	t.Helper()
	if err := c.D.WaitNetwork(c.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	if now := inside(c); now != pid {
		t.Errorf("the container's init was %d, is %d", pid, now)
	}
	r, err := c.D.Runtime.ExecSync(c.Ctx(), &cri.ExecSyncRequest{ContainerId: c.Container, Cmd: []string{"echo", "fine"}})
	if err != nil || string(r.Stdout) != "fine\n" {
		t.Errorf("exec: %v, %v", r, err)
	}
}

// remember writes down what there is, so that its absence can be seen.
func remember(t *testing.T, c container) {
	t.Helper()
	if taken := addresses(t); len(taken) != 1 {
		t.Errorf("the network has given out %v, want one address", taken)
	}
	text, err := json.Marshal(c.pods)
	if err == nil {
		err = os.WriteFile(acrossReboot, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	syscall.Sync()
}

// addresses are the names of the files that host-local keeps, one for each address in use.
func addresses(t *testing.T) []string {
	t.Helper()
	return entries(t, leases, func(name string) bool { return strings.HasPrefix(name, "10.") })
}

func entries(t *testing.T, dir string, want func(string) bool) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range all {
		if want(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestAfterTheReboot(t *testing.T) {
	k := afterTheReboot(t, func(s *cri.ContainerStatus) bool { return s.Reason == "Completed" && s.ExitCode == 0 }) // systemd's SIGTERM ended it
	remember(t, start(k))
}

func TestAfterThePowerCut(t *testing.T) {
	k := afterTheReboot(t, func(s *cri.ContainerStatus) bool { return s.ExitCode != 0 }) // nobody knows how it ended
	p := k.RunPod(k.PodConfig("next"))
	if out := p.Start(k.Forever("main")).Exec("echo fine"); out != "fine" {
		t.Errorf("exec: %q", out)
	}
}

// afterTheReboot checks that what ran before is known to have ended, and leaves nothing when it is removed.
func afterTheReboot(t *testing.T, ended func(*cri.ContainerStatus) bool) *kubelet.Kubelet {
	t.Helper()
	data, err := os.ReadFile(acrossReboot)
	if err != nil {
		t.Fatal(err)
	}
	var was pods
	if err := json.Unmarshal(data, &was); err != nil {
		t.Fatal(err)
	}
	kubelet.Eventually(t, 30*time.Second, func() string {
		out, _ := exec.Command("systemctl", "is-active", "berth").CombinedOutput()
		if s := strings.TrimSpace(string(out)); s != "active" {
			return "the enabled unit is " + s
		}
		return ""
	})
	k := attach(t)
	s, err := k.D.Runtime.PodSandboxStatus(k.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: was.Sandbox})
	if err != nil || s.GetStatus().GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandbox: %v, %v", s.GetStatus().GetState(), err)
	}
	c, err := k.D.Runtime.ContainerStatus(k.Ctx(), &cri.ContainerStatusRequest{ContainerId: was.Container})
	if status := c.GetStatus(); err != nil || status.GetState() != cri.ContainerState_CONTAINER_EXITED || status.GetFinishedAt() == 0 || !ended(status) {
		t.Errorf("container: %v, %v", status, err)
	}
	kubelet.Eventually(t, 10*time.Second, func() string {
		if taken := addresses(t); len(taken) > 0 {
			return fmt.Sprintf("addresses are still taken: %v", taken)
		}
		return ""
	})
	if _, err := k.D.Runtime.RemovePodSandbox(k.Ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: was.Sandbox}); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, was)
	busybox, err := k.D.Images.ListImages(k.Ctx(), &cri.ListImagesRequest{})
	if err != nil || len(busybox.Images) != 1 {
		t.Fatalf("images: %v, %v", busybox, err)
	}
	k.Image = busybox.Images[0].Id
	return k
}

func nothingLeft(t *testing.T, was pods) {
	t.Helper()
	all := func(string) bool { return true }
	for _, dir := range []string{"/var/lib/berth/pods", "/var/lib/berth/rootfs", "/run/berth/pods", "/run/netns"} {
		if left := entries(t, dir, all); len(left) > 0 {
			t.Errorf("%s holds %v", dir, left)
		}
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if found, err := h.Exists(was.Cgroup); found || err != nil {
		t.Errorf("cgroup %s is there: %v, %v", was.Cgroup, found, err)
	}
}
