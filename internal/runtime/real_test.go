// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
)

// shimDir is where shimBinary builds; empty as long as nobody asked.
var shimDir string

var shimBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-rt-shim-")
	if err != nil {
		return "", err
	}
	shimDir = dir
	path := filepath.Join(dir, "berth-shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "../../cmd/berth-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build berth-shim: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if shimDir != "" {
		os.RemoveAll(shimDir)
	}
	os.Exit(code)
}

func runcBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("BERTH_TEST_RUNC"); path != "" {
		return path
	}
	if path, err := filepath.Abs("../../bin/runc"); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal("no runc: set BERTH_TEST_RUNC, or run `make` (bin/runc), or install runc")
	}
	return path
}

// pod is a sandbox with the real shim and runc. It checks at its end that nothing of it is left.
type pod struct {
	*testing.T
	*Runtime
	shim   *Shim
	parent string // cgroup
	logs   string
}

func startPod(t *testing.T, stateDir string) *pod {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests start containers: they need root")
	}
	shimPath, err := shimBinary()
	if err != nil {
		t.Fatal(err)
	}
	leakCheck(t)
	p := &pod{T: t, parent: "/" + filepath.Base(shortDir(t)), logs: t.TempDir()}
	p.Runtime = newRuntime(t, Config{StateDir: stateDir, ShimPath: shimPath,
		Handlers: map[string]Handler{"runc": {Path: runcBinary(t), Native: true}}})
	if _, err := p.cgroups.Create(p.parent); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.finish)
	if p.shim, err = p.StartShim(timeout(t, 5*time.Second), ShimRequest{Sandbox: testSandbox}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.shim.Close() })
	return p
}

// finish ends the shim without its help, and looks for what that leaves.
func (p *pod) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if p.Failed() {
		log, _ := os.ReadFile(shimapi.LogPath(p.podDir(testSandbox)))
		p.Logf("shim.log:\n%s", log)
	}
	if err := p.KillShim(ctx, testSandbox); err != nil {
		p.Error(err)
	}
	if err := p.cgroups.Kill(ctx, p.parent); err != nil {
		p.Error(err)
	}
	if err := p.cgroups.Remove(ctx, p.parent); err != nil {
		p.Error(err)
	}
	states, _ := os.ReadDir(filepath.Join(p.stateDir, "runc"))
	for _, state := range states {
		p.Errorf("runc still knows %s", state.Name())
	}
}

// run makes a container of busybox that runs the script, and starts it.
func (p *pod) run(id, script string) (pid int) {
	p.Helper()
	bundle := shimapi.BundlePath(p.podDir(testSandbox), id)
	bin := filepath.Join(bundle, shimapi.RootfsName, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		p.Fatal(err)
	}
	if out, err := exec.Command("cp", "/bin/busybox", bin).CombinedOutput(); err != nil {
		p.Fatalf("%v %s", err, out)
	}
	for _, name := range []string{"sh", "sleep", "cat", "echo", "yes", "head", "setsid", "true"} {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			p.Fatal(err)
		}
	}
	config, err := json.Marshal(map[string]any{
		"ociVersion": "1.2.0",
		"process":    process("sh", "-c", script),
		"root":       map[string]any{"path": shimapi.RootfsName},
		"mounts":     []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux": map[string]any{
			"cgroupsPath": cgroup.ContainerPath(cgroup.Cgroupfs, p.parent, "berth", id),
			"namespaces":  []map[string]string{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}},
		},
	})
	if err != nil {
		p.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, shimapi.ConfigName), config, 0o600); err != nil {
		p.Fatal(err)
	}
	ctx := timeout(p.T, 20*time.Second)
	if err := p.shim.Create(ctx, CreateTask{ID: id, Bundle: bundle, LogPath: filepath.Join(p.logs, id)}); err != nil {
		p.Fatal(err)
	}
	if pid, err = p.shim.Start(ctx, id); err != nil {
		p.Fatal(err)
	}
	return pid
}

func process(args ...string) map[string]any {
	return map[string]any{"args": args, "cwd": "/", "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0}}
}

func (p *pod) exec(id string, limit time.Duration, script string) (ExecResult, error) {
	p.Helper()
	spec, err := json.Marshal(process("sh", "-c", script))
	if err != nil {
		p.Fatal(err)
	}
	return p.shim.ExecSync(timeout(p.T, 30*time.Second), id, ExecRequest{Process: spec, Timeout: limit, Limit: 1 << 20})
}

// end kills, waits for and deletes a container.
func (p *pod) end(id string) Exit {
	p.Helper()
	ctx := timeout(p.T, 20*time.Second)
	if err := p.shim.Kill(ctx, id, sigkill, true); err != nil {
		p.Error(err)
	}
	exit, err := p.shim.Wait(ctx, id)
	if err != nil {
		p.Error(err)
	}
	for range 2 {
		if err := p.shim.Delete(ctx, id); err != nil {
			p.Error(err)
		}
	}
	return exit
}

func TestRealContainerLivesThroughAChangeOfDaemons(t *testing.T) {
	p := startPod(t, filepath.Join(shortDir(t), strings.Repeat("long", 30)))
	pid := p.run("c1", "echo hello; sleep 1000")
	ctx := timeout(t, 30*time.Second)
	hello := func() bool {
		log, _ := os.ReadFile(filepath.Join(p.logs, "c1"))
		return strings.Contains(string(log), "stdout F hello\n")
	}
	eventually(t, "the container's output", hello) // it is killed later
	if err := p.shim.Update(ctx, "c1", []byte(`{"pids":{"limit":77}}`)); err != nil {
		t.Error(err)
	}
	pids, err := p.shim.Pids(ctx, "c1")
	if err != nil || len(pids) == 0 {
		t.Errorf("Pids = %v, %v", pids, err)
	}
	if err := p.shim.ReopenLog(ctx, "c1"); err != nil {
		t.Error(err)
	}
	want(t, "Shutdown with a container", p.shim.Shutdown(ctx, false), ErrState, "")
	shimPID := readShimFact(t, p.Runtime).PID
	p.shim.Close()
	p.Runtime.Close() // the daemon ends

	next := newRuntime(t, Config{StateDir: p.stateDir, ShimPath: p.shimPath, Handlers: p.handlers})
	if p.shim, err = next.ConnectShim(ctx, testSandbox); err != nil {
		t.Fatal(err)
	}
	info, err := p.shim.Info(ctx)
	if err != nil || info.PID != shimPID || len(info.Tasks) != 1 || info.Tasks[0].Status != shimpb.Status_RUNNING || int(info.Tasks[0].Pid) != pid {
		t.Errorf("Info = %+v, %v", info, err)
	}
	if err := p.shim.Kill(ctx, "c1", int(syscall.SIGTERM), false); err != nil { // init of a PID namespace ignores it
		t.Error(err)
	}
	exit := p.end("c1")
	if exit.Code != 137 || exit.Signal != 9 || exit.StartedAt.IsZero() || exit.ExitedAt.Before(exit.StartedAt) {
		t.Errorf("exit %+v", exit)
	}
	if !hello() {
		t.Error("the log has lost the container's output")
	}
	if err := p.shim.Shutdown(ctx, false); err != nil {
		t.Error(err)
	}
	_, err = next.ConnectShim(ctx, testSandbox)
	want(t, "after Shutdown", err, ErrShimGone, "")
	// The process belongs to the runtime that started it, which has stopped watching: so it is reaped here.
	if _, err := syscall.Wait4(shimPID, nil, 0, nil); err != nil {
		t.Errorf("shim is no child any more: %v", err)
	}
}

func TestRealExecSync(t *testing.T) {
	p := startPod(t, "")
	p.run("c1", "sleep 1000")
	result, err := p.exec("c1", 0, "echo out; echo err >&2; exit 7")
	if err != nil || string(result.Stdout) != "out\n" || string(result.Stderr) != "err\n" || result.ExitCode != 7 || result.Truncated {
		t.Errorf("%+v, %v", result, err)
	}
	result, err = p.exec("c1", 0, "yes | head -c 30000000")
	if err != nil || len(result.Stdout) != 1<<20 || !result.Truncated || result.ExitCode != 0 {
		t.Errorf("flood: %d bytes, %v, %v", len(result.Stdout), result.Truncated, err)
	}
	begin := time.Now()
	result, err = p.exec("c1", 0, "sleep 500 & echo started")
	if took := time.Since(begin); err != nil || string(result.Stdout) != "started\n" || took > 10*time.Second {
		t.Errorf("background child: %+v, %v after %s", result, err, took)
	}
	second := 5000000 + 3*os.Getpid() // so that another run of this test is not mistaken for this one
	result, err = p.exec("c1", 500*time.Millisecond, fmt.Sprintf("echo begun; sleep %d & (sleep %d); sleep %d", second, second+1, second+2))
	want(t, "timeout", err, ErrExecTimeout, "exec in container c1")
	if string(result.Stdout) != "begun\n" {
		t.Errorf("timeout: %q", result.Stdout)
	}
	for victim := second; victim < second+3; victim++ {
		if found, err := proc.Find(func(args []string) bool { return slices.Equal(args, []string{"sleep", strconv.Itoa(victim)}) }); err != nil || len(found) > 0 {
			t.Errorf("sleep %d survives its exec: %v, %v", victim, found, err)
		}
	}
	_, err = p.shim.ExecSync(timeout(t, 10*time.Second), "c1", ExecRequest{Process: []byte(`{"args":["nope"],"cwd":"/","user":{"uid":0,"gid":0}}`)})
	if err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("unknown command: %v", err)
	}
	_, err = p.exec("c2", 0, "true")
	want(t, "unknown container", err, ErrNotFound, "c2")
	p.end("c1")
}

func TestRealStartThatFailsSaysWhatRuncSaid(t *testing.T) {
	p := startPod(t, "")
	bundle := shimapi.BundlePath(p.podDir(testSandbox), "c1")
	if err := os.MkdirAll(filepath.Join(bundle, shimapi.RootfsName), 0o755); err != nil {
		t.Fatal(err)
	}
	config := `{"ociVersion":"1.2.0","process":{"args":["nope"],"cwd":"/","user":{"uid":0,"gid":0}},"root":{"path":"rootfs"},
		"linux":{"cgroupsPath":"` + p.parent + `/c1","namespaces":[{"type":"pid"},{"type":"mount"}]}}`
	if err := os.WriteFile(filepath.Join(bundle, shimapi.ConfigName), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := timeout(t, 20*time.Second)
	if err := p.shim.Create(ctx, CreateTask{ID: "c1", Bundle: bundle}); err != nil {
		t.Fatal(err)
	}
	_, err := p.shim.Start(ctx, "c1")
	if err == nil || !strings.Contains(err.Error(), "start container c1") || !strings.Contains(err.Error(), "nope") {
		t.Errorf("Start = %v", err)
	}
	if err := p.shim.Delete(ctx, "c1"); err != nil {
		t.Error(err)
	}
}

func TestRealShimKilledWithItsContainerRunning(t *testing.T) {
	p := startPod(t, "")
	pid := p.run("c1", "setsid sleep 1000 & sleep 1000")
	stat, err := proc.ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx := timeout(t, 30*time.Second)
	waited := make(chan error, 1)
	go func() { _, err := p.shim.Wait(ctx, "c1"); waited <- err }()
	time.Sleep(50 * time.Millisecond) // so that Wait is under way, mostly
	if err := p.KillShim(ctx, testSandbox); err != nil {
		t.Fatal(err)
	}
	want(t, "Wait", <-waited, ErrShimGone, "")
	if left, err := p.LeftOver(testSandbox, "c1"); err != nil || left != (LeftOver{PID: pid, Alive: true}) {
		t.Errorf("LeftOver = %+v, %v", left, err)
	}
	bundle := shimapi.BundlePath(p.podDir(testSandbox), "c1")
	for range 2 {
		if err := p.KillLeftOver(ctx, "runc", "c1", bundle); err != nil {
			t.Error(err)
		}
	}
	if proc.Is(stat.PID, stat.StartTime) {
		t.Errorf("init %d lives", pid)
	}
	if found, err := p.cgroups.Exists(p.parent + "/c1"); found || err != nil {
		t.Errorf("cgroup is left: %v, %v", found, err)
	}
}

func TestRealVersionAndFeatures(t *testing.T) {
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: runcBinary(t)}}})
	v, err := r.Version(timeout(t, 10*time.Second), "")
	if err != nil || v.Name != "runc" {
		t.Errorf("Version = %+v, %v", v, err)
	}
	if major, _, _ := strings.Cut(v.Version, "."); err == nil {
		if _, err := strconv.Atoi(major); err != nil {
			t.Errorf("version %q", v.Version)
		}
	}
	f, err := r.Features(timeout(t, 10*time.Second), "runc")
	if err != nil || !f.RecursiveReadOnlyMounts || !f.UserNamespaces || !f.IDMapMounts || len(f.Raw) == 0 {
		t.Errorf("Features = %+v, %v", f, err)
	}
}
