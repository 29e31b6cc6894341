// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/test/thread"
)

func TestReadStatOfSelf(t *testing.T) {
	stat, err := ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if stat.PID != os.Getpid() || stat.PPID != os.Getppid() || stat.StartTime == 0 {
		t.Fatalf("%+v", stat)
	}
	// 0 where the session's leader is outside of our PID namespace: as getsid has it.
	session, err := unix.Getsid(0)
	if err != nil || stat.Session != session {
		t.Fatalf("session %d, want %d: %v", stat.Session, session, err)
	}
	if !Is(stat.PID, stat.StartTime) {
		t.Fatal("does not recognise itself")
	}
	if Is(stat.PID, stat.StartTime+1) {
		t.Fatal("takes another start time for itself")
	}
}

func TestParseStat(t *testing.T) {
	tail := " S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 4711 100 200 18446744073709551615 1 1 0 0 0 256 0\n"
	for name, want := range map[string]string{
		"12 (sleep)" + tail:      "sleep",
		"12 (a) R 1 (b)" + tail:  "a) R 1 (b",
		"12 (with\nline)" + tail: "with\nline",
		"12 ())" + tail:          ")",
	} {
		stat, err := parseStat([]byte(name))
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if want := (Stat{12, want, 'S', 7, 8, 9, 3, 4711, true}); stat != want {
			t.Errorf("%q: %+v", name, stat)
		}
	}
	for _, bad := range []string{"", "12", "12 (x)", "12 (x) S 1 2 3", "x (x)" + tail, "12 (x) S a 8 9" + tail} {
		if stat, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, stat)
		}
	}
}

// TestAProcessOutlivesItsFirstThread: pthread_exit in main, which every program may do.
func TestAProcessOutlivesItsFirstThread(t *testing.T) {
	process, _, release := thread.Start(t)
	stat, err := ReadStat(process.Pid)
	for ; err == nil && stat.State != 'Z'; stat, err = ReadStat(process.Pid) {
		time.Sleep(time.Millisecond)
	}
	if err != nil || stat.Ended() || !Is(stat.PID, stat.StartTime) {
		t.Fatalf("while threads live: %+v, %v", stat, err)
	}
	release()
	for ; err == nil && !stat.Ended(); stat, err = ReadStat(process.Pid) {
		time.Sleep(time.Millisecond)
	}
	if err != nil || Is(stat.PID, stat.StartTime) {
		t.Fatalf("after the last thread: %+v, %v", stat, err)
	}
	if _, err := process.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestReadStatOfMissingProcess(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadStat(cmd.Process.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if children, err := Children(cmd.Process.Pid); err != nil || children != nil {
		t.Fatalf("%v, %v", children, err)
	}
}

func TestChildren(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	children, err := Children(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(children, cmd.Process.Pid) {
		t.Fatalf("%d is not in %v", cmd.Process.Pid, children)
	}
}

func TestCgroupsOfSelfExist(t *testing.T) {
	paths, err := CgroupPaths(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := CgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for key, mount := range mounts {
		path, ok := paths[key]
		if !ok {
			continue
		}
		if _, err := os.Stat(mount + path + "/cgroup.procs"); err != nil {
			t.Errorf("%q: %v", key, err)
		}
		found++
	}
	if found == 0 {
		t.Fatalf("no hierarchy of %v in %v", paths, mounts)
	}
}

func TestAddCgroupMount(t *testing.T) {
	mounts := make(map[string]string)
	for line := range strings.Lines(`25 30 0:23 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw
26 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:10 master:2 - cgroup cgroup rw,cpu,cpuacct
27 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
28 25 0:24 / /somewhere/else rw - cgroup cgroup rw,cpu,cpuacct
broken line
`) {
		addCgroupMount(mounts, line)
	}
	if mounts["cpu"] != "/sys/fs/cgroup/cpu,cpuacct" || mounts["cpuacct"] != mounts["cpu"] || mounts[""] != "/sys/fs/cgroup/unified" {
		t.Fatal(mounts)
	}
}
