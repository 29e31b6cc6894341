// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// host returns the real hierarchies and a cgroup path of the test's own, which is removed at the end and
// checked to be gone everywhere.
func host(t *testing.T) (*Hierarchies, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cgroups are made by root only")
	}
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 6)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	path := "/berth-t-" + hex.EncodeToString(random)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(h.Kill(ctx, path), h.Remove(ctx, path)); err != nil {
			t.Error(err)
		}
		if found, err := h.Exists(path); found || err != nil {
			t.Errorf("Exists(%s) after Remove = %v, %v", path, found, err)
		}
	})
	return h, path
}

// spawn starts a shell in the cgroup, in every hierarchy, and reaps it at the end.
func spawn(t *testing.T, h *Hierarchies, path, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe() // the script starts with a read, so that it forks in its cgroup only
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		cmd.Wait() // it is killed: the error is expected
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		if err := h.thaw(path); err != nil { // or a test that failed in between waits for ever
			t.Error(err)
		}
		<-done
	})
	for _, point := range h.points {
		file := filepath.Join(point, path, "cgroup.procs")
		if err := writeFile(file, strconv.Itoa(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestCreateMakesEveryHierarchyUsableAndIsIdempotent(t *testing.T) {
	h, root := host(t)
	path := root + "/burstable/pod-1"
	created, err := h.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := 3 * len(h.points); len(created) != want {
		t.Errorf("created %d folders, want %d: %v", len(created), want, created)
	}
	if found, err := h.Exists(path); !found || err != nil {
		t.Errorf("Exists = %v, %v", found, err)
	}
	created, err = h.Create(path)
	if err != nil || len(created) != 0 {
		t.Errorf("second Create made %v, %v", created, err)
	}
	cmd := spawn(t, h, path, "read x; sleep 60") // fails in a cpuset without CPUs
	pids, err := h.Pids(root)
	if err != nil || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("Pids = %v, %v; want %d among them", pids, err, cmd.Process.Pid)
	}
	names, err := h.List(root + "/burstable")
	if err != nil || !slices.Equal(names, []string{"pod-1"}) {
		t.Errorf("List = %v, %v", names, err)
	}
	if h.Mode() == Unified {
		return
	}
	if count, err := h.OOMKills(path); err != nil || count != 0 {
		t.Errorf("OOMKills = %d, %v", count, err)
	}
}

func TestCreateCompletesAnEmptyCpusetAncestor(t *testing.T) {
	h, root := host(t)
	point, ok := h.controllers["cpuset"]
	if !ok {
		t.Skip("no v1 cpuset controller here")
	}
	if err := os.Mkdir(filepath.Join(point, root), 0o755); err != nil { // as after a crash between mkdir and write
		t.Fatal(err)
	}
	if _, err := h.Create(root + "/pod"); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if words, err := readWords(filepath.Join(point, root, "pod", file)); err != nil || len(words) == 0 {
			t.Errorf("%s = %v, %v", file, words, err)
		}
	}
}

func TestKillEndsAForkingTreeThenRemoveSucceeds(t *testing.T) {
	h, root := host(t)
	if _, err := h.Create(root + "/pod/ctr"); err != nil {
		t.Fatal(err)
	}
	spawn(t, h, root+"/pod/ctr", "read x; while :; do (setsid sleep 60 &) ; sleep 0.01; done")
	waitFor(t, func() bool { pids, _ := h.Pids(root); return len(pids) > 5 })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := h.Kill(ctx, root+"/pod"); err != nil {
		t.Fatal(err)
	}
	if pids, err := h.Pids(root); err != nil || len(pids) != 0 {
		t.Errorf("Pids after Kill = %v, %v", pids, err)
	}
	for range 2 {
		if err := h.Remove(ctx, root+"/pod"); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := h.Exists(root + "/pod"); found || err != nil {
		t.Errorf("Exists after Remove = %v, %v", found, err)
	}
	if found, err := h.Exists(root); !found || err != nil {
		t.Errorf("Remove took the parent along: %v, %v", found, err)
	}
}

func TestKillEndsFrozenProcesses(t *testing.T) {
	h, root := host(t)
	point, ok := h.controllers["freezer"]
	if !ok {
		t.Skip("no v1 freezer here")
	}
	if _, err := h.Create(root + "/ctr"); err != nil {
		t.Fatal(err)
	}
	cmd := spawn(t, h, root+"/ctr", "read x; exec sleep 60")
	waitFor(t, func() bool { // a process in the midst of vfork does not freeze
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		return string(comm) == "sleep\n"
	})
	state := filepath.Join(point, root, "ctr", "freezer.state")
	if err := writeFile(state, "FROZEN"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { words, _ := readWords(state); return slices.Equal(words, []string{"FROZEN"}) })
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := h.Kill(ctx, root); err != nil {
		t.Error(err)
	}
}

func TestRemoveOfABusyCgroupNamesItsProcesses(t *testing.T) {
	h, root := host(t)
	if _, err := h.Create(root); err != nil {
		t.Fatal(err)
	}
	cmd := spawn(t, h, root, "read x; exec sleep 60")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := h.Remove(ctx, root)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("Remove = %v; want ErrBusy with pid %d", err, cmd.Process.Pid)
	}
}

func TestKillNeverTakesThisProcess(t *testing.T) {
	root := t.TempDir()
	h := fake(t, root)
	dir := filepath.Join(root, "unified", "pod")
	mustWrite(t, filepath.Join(dir, "cgroup.procs"), fmt.Sprintln(os.Getpid()))
	if err := h.Kill(context.Background(), "/pod"); !errors.Is(err, ErrProtected) {
		t.Errorf("Kill = %v; want ErrProtected", err)
	}
}

func TestKillSparesAPidThatLeftTheCgroup(t *testing.T) {
	root := t.TempDir()
	h := fake(t, root)
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer stranger.Wait()
	defer stranger.Process.Kill()
	// The fake list says that it is in the cgroup, /proc says that it is not: as after a pid was used anew.
	mustWrite(t, filepath.Join(root, "unified", "pod", "cgroup.procs"), fmt.Sprintln(stranger.Process.Pid))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := h.Kill(ctx, "/pod"); !errors.Is(err, ErrBusy) {
		t.Errorf("Kill = %v; want ErrBusy", err)
	}
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the stranger was hit: %v", err)
	}
}

func TestTheRootIsNeverTouched(t *testing.T) {
	h := fake(t, t.TempDir())
	ctx := context.Background()
	for _, path := range []string{"", "/", "//", ".", "/a/../..", "a/..", "..", "/a\x00b"} {
		_, err := h.Create(path)
		for _, err := range []error{err, h.Kill(ctx, path), h.Remove(ctx, path)} {
			if !errors.Is(err, ErrProtected) {
				t.Errorf("%q: %v; want ErrProtected", path, err)
			}
		}
	}
}

func TestUnifiedCreateDelegatesControllersDownTheTree(t *testing.T) {
	root := t.TempDir()
	h := fake(t, root)
	top := filepath.Join(root, "unified")
	mustWrite(t, filepath.Join(top, "cgroup.controllers"), "cpu memory pids\n")
	mustWrite(t, filepath.Join(top, "cgroup.subtree_control"), "cpu memory")
	mustWrite(t, filepath.Join(top, "pods", "cgroup.controllers"), "cpu")
	mustWrite(t, filepath.Join(top, "pods", "cgroup.subtree_control"), "")
	created, err := h.Create("/pods/one")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{filepath.Join(top, "pods", "one")}; !slices.Equal(created, want) {
		t.Errorf("created %v, want %v", created, want)
	}
	for file, want := range map[string]string{"cgroup.subtree_control": "+pidsemory", "pods/cgroup.subtree_control": "+cpu"} {
		data, err := os.ReadFile(filepath.Join(top, file))
		if err != nil || string(data) != want { // a plain file is overwritten from its start, not appended to
			t.Errorf("%s = %q, %v; want %q", file, data, err, want)
		}
	}
}

func TestUnifiedFacts(t *testing.T) {
	root := t.TempDir()
	h := fake(t, root)
	pod := filepath.Join(root, "unified", "pod")
	mustWrite(t, filepath.Join(pod, "cgroup.procs"), "0\n")
	mustWrite(t, filepath.Join(pod, "ctr", "cgroup.procs"), "17\n12\n")
	mustWrite(t, filepath.Join(pod, "memory.events"), "low 0\nhigh 1\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n")
	if pids, err := h.Pids("/pod"); err != nil || !slices.Equal(pids, []int{12, 17}) {
		t.Errorf("Pids = %v, %v", pids, err)
	}
	if count, err := h.OOMKills("pod"); err != nil || count != 2 {
		t.Errorf("OOMKills = %d, %v", count, err)
	}
	if _, err := h.OOMKills("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OOMKills of nothing = %v", err)
	}
	if pids, err := h.Pids("/none"); err != nil || len(pids) != 0 {
		t.Errorf("Pids of nothing = %v, %v", pids, err)
	}
	if names, err := h.List("/none"); err != nil || len(names) != 0 {
		t.Errorf("List of nothing = %v, %v", names, err)
	}
}

func TestOOMKillsCountsOnV1(t *testing.T) {
	root := t.TempDir()
	h := &Hierarchies{mode: Legacy, controllers: map[string]string{"memory": root}, points: []string{root}}
	mustWrite(t, filepath.Join(root, "ctr", "memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
	if count, err := h.OOMKills("/ctr"); err != nil || count != 4 {
		t.Errorf("OOMKills = %d, %v", count, err)
	}
}

func TestModeFromMounts(t *testing.T) {
	cases := []struct {
		name   string
		mounts map[string]string
		mode   Mode
		points []string
	}{
		{"unified", map[string]string{"": "/cg", "nsdelegate": "/x"}, Unified, []string{"/cg"}},
		{"unified with a stray named hierarchy", map[string]string{"": "/cg", "name=openrc": "/o"}, Unified, []string{"/cg"}},
		{"legacy, co-mounted", map[string]string{"rw": "/c", "cpu": "/c", "cpuacct": "/c", "memory": "/m"}, Legacy, []string{"/c", "/m"}},
		{"hybrid", map[string]string{"": "/u", "pids": "/p", "name=systemd": "/s", "xattr": "/s"}, Hybrid, []string{"/p", "/s"}},
	}
	for _, c := range cases {
		h, err := FromMounts(c.mounts)
		if err != nil || h.Mode() != c.mode || !slices.Equal(h.points, c.points) {
			t.Errorf("%s: %+v, %v; want %s %v", c.name, h, err, c.mode, c.points)
		}
	}
	if _, err := FromMounts(map[string]string{"name=systemd": "/s"}); !errors.Is(err, ErrNoCgroups) {
		t.Errorf("no controllers: %v", err)
	}
}

// fake returns unified hierarchies on plain folders: there files do not appear by themselves.
func fake(t *testing.T, root string) *Hierarchies {
	t.Helper()
	point := filepath.Join(root, "unified")
	if err := os.MkdirAll(point, 0o700); err != nil {
		t.Fatal(err)
	}
	return &Hierarchies{mode: Unified, unified: point, points: []string{point}}
}

func mustWrite(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, true func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !true(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("does not become true")
		}
	}
}
