// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/test/thread"
)

// bystander is a process that nobody may touch.
func bystander(t *testing.T) proc.ID {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stat, err := proc.ReadStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !proc.Is(stat.PID, stat.StartTime) {
			t.Error("a process that only had the recorded pid was killed")
		}
		cmd.Process.Kill()
		cmd.Wait()
	})
	return proc.ID{PID: stat.PID, StartTime: stat.StartTime}
}

func readShimFact(t *testing.T, r *Runtime) proc.ID {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.podDir(testSandbox), shimRecord))
	if err != nil {
		t.Fatal(err)
	}
	var fact proc.ID
	if err := json.Unmarshal(data, &fact); err != nil {
		t.Fatal(err)
	}
	return fact
}

func eventually(t *testing.T, what string, true func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !true(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestStartGivesTheShimItsSocketsAndNothingElse(t *testing.T) {
	leakCheck(t)
	t.Setenv("BERTH_SECRET", "token")
	r := newRuntime(t, Config{ShimPath: script(t, `echo "$@" >&2; env | sort >&2; (ls -l /proc/$$/fd) | cat >&2; cat /proc/self/stat >&2; exec sleep 60`)})
	shim, err := r.StartShim(timeout(t, 5*time.Second), ShimRequest{Sandbox: testSandbox})
	if err != nil {
		t.Fatal(err)
	}
	defer shim.Close()
	fact := readShimFact(t, r)
	if !proc.Is(fact.PID, fact.StartTime) {
		t.Fatalf("no process %+v", fact)
	}
	stat, err := proc.ReadStat(fact.PID)
	if err != nil || stat.Session != fact.PID {
		t.Errorf("session %d of process %d: %v", stat.Session, fact.PID, err)
	}
	log := func() string {
		data, _ := os.ReadFile(shimapi.LogPath(r.podDir(testSandbox)))
		return string(data)
	}
	eventually(t, "shim.log", func() bool { return strings.Contains(log(), "(cat)") })
	text := log()
	for _, part := range []string{"serve --dir " + r.podDir(testSandbox), "PATH=", "0 -> /dev/null", "1 -> /dev/null", "3 -> socket:", "4 -> socket:"} {
		if !strings.Contains(text, part) {
			t.Errorf("shim.log lacks %q:\n%s", part, text)
		}
	}
	if strings.Contains(text, "token") || strings.Contains(text, " 5 -> socket:") {
		t.Errorf("the shim got more than it should:\n%s", text)
	}
	_, err = r.StartShim(timeout(t, 5*time.Second), ShimRequest{Sandbox: testSandbox})
	want(t, "second start", err, ErrShimRuns, fmt.Sprint(fact.PID))
	if !proc.Is(fact.PID, fact.StartTime) {
		t.Error("the second start killed the first shim")
	}
	if err := r.KillShim(timeout(t, 5*time.Second), testSandbox); err != nil {
		t.Fatal(err)
	}
	eventually(t, "reaped", func() bool { _, err := proc.ReadStat(fact.PID); return err != nil })
	if err := r.KillShim(timeout(t, 5*time.Second), testSandbox); err != nil {
		t.Errorf("second KillShim: %v", err)
	}
	_, err = shim.Info(timeout(t, 5*time.Second))
	want(t, "Info of a killed shim", err, ErrShimGone, "")
}

func TestAShimThatDiesAtOnceIsReapedAndGone(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{ShimPath: script(t, "echo broken >&2; exit 3")})
	shim, err := r.StartShim(timeout(t, 5*time.Second), ShimRequest{Sandbox: testSandbox})
	if err == nil { // it may have been quicker than the connection
		_, err = shim.Info(timeout(t, 5*time.Second))
		shim.Close()
	}
	want(t, "shim that dies", err, ErrShimGone, "")
	fact := readShimFact(t, r)
	eventually(t, "reaped", func() bool { _, err := proc.ReadStat(fact.PID); return err != nil })
	if data, _ := os.ReadFile(shimapi.LogPath(r.podDir(testSandbox))); string(data) != "broken\n" {
		t.Errorf("shim.log: %q", data)
	}
}

// A shim that ends is, for a moment, a zombie with threads: what cannot be waited for yet must not be given up.
func TestAShimIsReapedWhoseFirstThreadEndsFirst(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	process, pidFD, release := thread.Start(t)
	stat, err := proc.ReadStat(process.Pid)
	for ; err == nil && stat.State != 'Z'; stat, err = proc.ReadStat(process.Pid) {
		time.Sleep(time.Millisecond)
	}
	if err == nil {
		err = r.watch(testSandbox, process, pidFD)
	}
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the watch has looked
	release()
	eventually(t, "reaped", func() bool { _, err := proc.ReadStat(process.Pid); return err != nil })
}

func TestStartThatCannotWork(t *testing.T) {
	leakCheck(t)
	path := script(t, "exit 0")
	r := newRuntime(t, Config{ShimPath: path})
	for _, id := range []string{"", "../x", ".."} {
		_, err := r.StartShim(timeout(t, time.Second), ShimRequest{Sandbox: id})
		want(t, "sandbox "+id, err, ErrInvalid, "start shim")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err := r.StartShim(timeout(t, time.Second), ShimRequest{Sandbox: testSandbox})
	want(t, "binary gone", err, os.ErrNotExist, path)
	_, err = r.ConnectShim(timeout(t, time.Second), testSandbox)
	want(t, "nobody listens", err, ErrShimGone, "")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = r.StartShim(ctx, ShimRequest{Sandbox: testSandbox})
	want(t, "caller gone", err, context.Canceled, "")
}

func TestKillShimSparesAPidThatIsAnothers(t *testing.T) {
	leakCheck(t)
	other := bystander(t)
	r := newRuntime(t, Config{})
	if err := makeDir(r.podDir(testSandbox)); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(proc.ID{PID: other.PID, StartTime: other.StartTime - 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.podDir(testSandbox), shimRecord), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.KillShim(timeout(t, 5*time.Second), testSandbox); err != nil {
		t.Error(err)
	}
	if err := r.KillShim(timeout(t, 5*time.Second), "unknown"); err != nil {
		t.Errorf("unknown sandbox: %v", err)
	}
}

func TestKillShimFindsOneThatWasNotRecorded(t *testing.T) {
	leakCheck(t)
	sleeper := filepath.Join(t.TempDir(), "shim") // ignores its arguments, keeps its command line
	build := exec.Command("go", "build", "-o", sleeper, "./testdata/sleeper")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, record := range []string{"", "{garbage"} {
		r := newRuntime(t, Config{ShimPath: sleeper})
		shim, err := r.StartShim(timeout(t, 5*time.Second), ShimRequest{Sandbox: testSandbox})
		if err != nil {
			t.Fatal(err)
		}
		shim.Close()
		fact := readShimFact(t, r)
		path := filepath.Join(r.podDir(testSandbox), shimRecord)
		if record == "" {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, []byte(record), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := r.KillShim(timeout(t, 5*time.Second), testSandbox); err != nil {
			t.Error(err)
		}
		if proc.Is(fact.PID, fact.StartTime) {
			t.Errorf("record %q: process %d lives", record, fact.PID)
		}
	}
}

// leftOver makes a bundle of a container with the given cgroup and init.
func leftOver(t *testing.T, r *Runtime, cgroupsPath string, init shimapi.InitFact) (bundle string) {
	t.Helper()
	bundle = shimapi.BundlePath(r.podDir(testSandbox), "c1")
	if err := makeDir(bundle); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"linux":{"cgroupsPath":%q}}`, cgroupsPath)
	if err := os.WriteFile(filepath.Join(bundle, shimapi.ConfigName), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := shimapi.WriteInitFact(bundle, init); err != nil {
		t.Fatal(err)
	}
	return bundle
}

func TestKillLeftOverSparesWhatIsNotTheContainers(t *testing.T) {
	leakCheck(t)
	other := bystander(t)
	calls := filepath.Join(t.TempDir(), "calls")
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: script(t, `echo "$@" >> `+calls), SystemdCgroup: true}}})
	for _, path := range []string{"/", "/kubepods", "system.slice:berth:other", "relative"} {
		bundle := leftOver(t, r, path, shimapi.InitFact{PID: other.PID, StartTime: other.StartTime - 1})
		err := r.KillLeftOver(timeout(t, 10*time.Second), "", "c1", bundle)
		if err == nil || !strings.Contains(err.Error(), "container c1") {
			t.Errorf("cgroupsPath %s: %v; want a refusal", path, err)
		}
	}
	if left, err := r.LeftOver(testSandbox, "c1"); err != nil || left != (LeftOver{PID: other.PID}) {
		t.Errorf("LeftOver = %+v, %v", left, err)
	}
	data, _ := os.ReadFile(calls)
	if want := "--root " + filepath.Join(r.stateDir, "runc") + " --systemd-cgroup delete --force c1\n"; string(data) != strings.Repeat(want, 4) {
		t.Errorf("calls %q", data)
	}
	if left, err := r.LeftOver(testSandbox, "unknown"); err != nil || left != (LeftOver{}) {
		t.Errorf("LeftOver of nothing = %+v, %v", left, err)
	}
}

func TestKillLeftOverNeedsNothingToBeThere(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	for range 2 {
		if err := r.KillLeftOver(timeout(t, 5*time.Second), "", "c1", filepath.Join(t.TempDir(), "none")); err != nil {
			t.Error(err)
		}
	}
	_, ok, err := r.ReadExit(filepath.Join(t.TempDir(), "none"))
	if ok || err != nil {
		t.Errorf("ReadExit = %v, %v", ok, err)
	}
}

func TestKillLeftOverEndsALaunchThatIsUnderWay(t *testing.T) {
	leakCheck(t)
	sleeper := filepath.Join(t.TempDir(), "runc")
	build := exec.Command("go", "build", "-o", sleeper, "./testdata/sleeper")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: sleeper}}})
	start := func(args ...string) proc.ID {
		cmd := exec.Command(sleeper, args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		stat, err := proc.ReadStat(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return proc.ID{PID: stat.PID, StartTime: stat.StartTime}
	}
	root := r.handlers["runc"].Root
	mine := start("--root", root, "run", "--detach", "c1")
	others := []proc.ID{start("--root", root, "run", "--detach", "c2"), start("--root", "/another", "run", "--detach", "c1")}
	if err := r.KillLeftOver(timeout(t, 5*time.Second), "", "c1", "/none"); err != nil {
		t.Error(err)
	}
	if mine.Runs() || !others[0].Runs() || !others[1].Runs() {
		t.Errorf("c1 runs: %v, c2 runs: %v, another daemon's c1 runs: %v", mine.Runs(), others[0].Runs(), others[1].Runs())
	}
}

func TestKillLeftOverTellsWhyTheRuntimeFailed(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: script(t, "echo first >&2; echo device busy >&2; exit 1")}}})
	err := r.KillLeftOver(timeout(t, 5*time.Second), "", "c1", "/none")
	if err == nil || !strings.Contains(err.Error(), "delete: device busy") {
		t.Errorf("KillLeftOver = %v", err)
	}
	want(t, "unknown handler", r.KillLeftOver(timeout(t, time.Second), "kata", "c1", "/none"), ErrNoHandler, "kata")
	want(t, "bad id", r.KillLeftOver(timeout(t, time.Second), "", "--root", "/none"), ErrInvalid, "")
	r = newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: script(t, "exec sleep 60")}}})
	want(t, "runtime hangs", r.KillLeftOver(timeout(t, 100*time.Millisecond), "", "c1", "/none"), context.DeadlineExceeded, "delete")
}
