// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/leak"
)

func TestSIGTERMEndsTheDaemonAndTouchesNoPod(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("stays")).Start(k.Shell("main", "i=0; while :; do echo tick $((i=i+1)); sleep 0.05; done"))
	c.WaitOutput("tick 2\n")
	took, err := k.D.Signal(syscall.SIGTERM, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if took > 10*time.Second {
		t.Errorf("SIGTERM took %s", took)
	}
	seen := len(c.Log())
	time.Sleep(300 * time.Millisecond)
	if now := len(c.Log()); now <= seen {
		t.Errorf("%d lines of log, %d before: the pod does not go on", now, seen)
	}
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	equal(t, "state", c.Status().State, cri.ContainerState_CONTAINER_RUNNING)
	c.Exec("true")
}

func TestAnOrdinaryLifeWarnsOfNothingAndLeavesNoCgroup(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	before := len(k.D.Log())
	for i := range 4 {
		p := k.RunPod(k.PodConfig(fmt.Sprint("ordinary", i)))
		c := p.Start(k.Forever("main"))
		c.Exec("true")
		if i%2 == 0 { // else the pod's removal does it all
			c.Stop(0)
			c.Remove()
			p.Stop()
		}
		p.Remove()
	}
	if _, err := k.D.Signal(syscall.SIGTERM, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(k.D.Log()[before:]) {
		if strings.Contains(line, "WARN") || strings.Contains(line, "ERROR") {
			t.Errorf("logged: %s", line)
		}
	}
	roots, err := leak.CgroupRoots()
	if err != nil {
		t.Fatal(err)
	}
	if k.D.CgroupDriver == cgroup.Systemd {
		roots = nil // systemd keeps its slices
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, k.D.CgroupParent)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the cgroup of all pods is left in %s: %v", root, err)
		}
	}
	if err := k.D.Launch(k.Ctx()); err != nil { // who has pods removed at the end of a test asks it
		t.Fatal(err)
	}
}

func TestTheSocketIsTheDaemonsAlone(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := start(t, daemon.Spec{NoNetwork: true})
	info, err := os.Stat(k.D.Socket)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "mode", info.Mode().Perm(), 0o660)

	second := exec.Command(k.D.Spec.Bin+"/berth", "serve", "--config", k.D.ConfigPath, "--root", k.D.Dir+"/root2",
		"--state", k.D.Dir+"/state2", "--socket", k.D.Socket)
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), k.D.Socket) {
		t.Errorf("a second daemon on a live socket: %v, %s", err, out)
	}
	if _, err := k.D.Runtime.Version(k.Ctx(), &cri.VersionRequest{}); err != nil {
		t.Errorf("the first daemon: %v", err)
	}
	same := exec.Command(k.D.Spec.Bin+"/berth", "serve", "--config", k.D.ConfigPath, "--root", k.D.Root,
		"--state", k.D.State, "--socket", k.D.Dir+"/other.sock")
	out, err = same.CombinedOutput()
	if err == nil || !strings.Contains(string(out), k.D.Root) && !strings.Contains(string(out), k.D.State) {
		t.Errorf("a second daemon in the same folders: %v, %s", err, out)
	}

	if err := k.D.Kill(); err != nil { // leaves its socket behind
		t.Fatal(err)
	}
	if _, err := os.Stat(k.D.Socket); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Errorf("stale socket: %v", err)
	}
}

func TestAFileThatIsNoSocketIsNotReplaced(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	d, err := daemon.Prepare(daemon.Spec{NoNetwork: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := os.WriteFile(d.Socket, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Launch(t.Context()); err == nil {
		t.Error("the daemon serves")
	}
	if data, err := os.ReadFile(d.Socket); err != nil || string(data) != "mine" {
		t.Errorf("the file is %q, %v", data, err)
	}
}

func TestAConfigurationErrorNamesFileLineAndKey(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	d, err := daemon.Prepare(daemon.Spec{NoNetwork: true, Config: "\n[netwrok]\nconf_dir = \"/x\"\n"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.Launch(t.Context()); err == nil {
		t.Fatal("the daemon serves")
	}
	contains(t, "log", d.Log(), d.ConfigPath, "netwrok", "network")
}

func TestReadinessIsToldToTheServiceManager(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "bt-notify-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	start(t, daemon.Spec{NoNetwork: true, Env: []string{"NOTIFY_SOCKET=" + dir + "/notify"}})
	l.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 4096)
	n, err := l.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), "READY=1") {
		t.Errorf("notified %q, %v", buf[:n], err)
	}
}

func TestImagesHaveASocketOfTheirOwnByConfiguration(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	socket := t.TempDir() + "/images.sock"
	k := start(t, daemon.Spec{NoNetwork: true, Config: fmt.Sprintf("[images]\nsocket = %q\n", socket)})
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "mode", info.Mode().Perm(), 0o660)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := cri.NewImageServiceClient(conn).ImageFsInfo(k.Ctx(), &cri.ImageFsInfoRequest{}); err != nil {
		t.Errorf("images: %v", err)
	}
	if _, err := cri.NewRuntimeServiceClient(conn).Version(k.Ctx(), &cri.VersionRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("the runtime service on the image socket: %v, want Unimplemented", err)
	}
	if err := k.D.Kill(); err != nil { // leaves both sockets behind
		t.Fatal(err)
	}
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	if _, err := cri.NewImageServiceClient(conn).ListImages(k.Ctx(), &cri.ListImagesRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("images after a restart: %v", err)
	}
	if _, err := k.D.Signal(syscall.SIGTERM, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the image socket is left after SIGTERM: %v", err)
	}
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
}
