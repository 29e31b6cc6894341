// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// place is a socket's path; those of t.TempDir can be too long.
func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "cri.sock")
}

func TestListenGivesTheSocketToItsGroupAndNobodyElse(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	for group, want := range map[string]struct {
		gid  uint32
		mode os.FileMode // of the folder
	}{"": {0, 0o700}, "4711": {4711, 0o710}} {
		path := place(t)
		l, err := listen(path, group)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		socket, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		folder, err := os.Stat(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		if gid := socket.Sys().(*syscall.Stat_t).Gid; socket.Mode().Perm() != 0o660 || folder.Mode().Perm() != want.mode || group != "" && gid != want.gid {
			t.Errorf("group %q: socket %v of group %d, folder %v", group, socket.Mode(), gid, folder.Mode())
		}
	}
}

func TestListenReplacesADeadSocketOnly(t *testing.T) {
	path := place(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	live, err := listen(path, "")
	if err != nil {
		t.Fatalf("over a dead socket: %v", err)
	}
	defer live.Close()
	if _, err := listen(path, ""); err == nil || !strings.Contains(err.Error(), "stop that daemon") {
		t.Errorf("over a live socket: %v", err)
	}
	file := filepath.Join(filepath.Dir(path), "notes.txt")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(file, ""); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("the file holds %q, %v", data, err)
	}
	if l, err := listen(place(t), "no-such-group-4711"); err == nil || !strings.Contains(err.Error(), "socket_group") {
		t.Errorf("unknown group: %v, %v", l, err)
	}
}

func TestOneDaemonPerRoot(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	first, err := lockRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRoot(root); err == nil || !strings.Contains(err.Error(), "used by another daemon") {
		t.Errorf("second: %v", err)
	}
	first.Close()
	again, err := lockRoot(root)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	again.Close()
}

func TestFoldersAreClosedWhateverTheyWereBefore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := closeFolder(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
