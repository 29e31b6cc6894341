// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestAppendingFollowsNoLinkBelowTheFolder(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"file": outside + "/f", "folder": outside, "a/b/deep": outside, "a/inside": "b", "dangling": outside + "/new"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]error{"file": syscall.ELOOP, "folder/f": syscall.ELOOP, "a/b/deep/f": syscall.ELOOP, "a/inside/f": syscall.ELOOP,
		"dangling": syscall.ELOOP, "../x": syscall.EXDEV, "a/../../x": syscall.EXDEV, "/etc/x": syscall.EXDEV, "a": syscall.EISDIR, "none/f": fs.ErrNotExist} {
		if f, err := AppendBeneath(dir, path, 0o600); !errors.Is(err, want) {
			t.Errorf("%s: %v, %v", path, f, err)
		}
	}
	if f, err := AppendBeneath(filepath.Join(dir, "folder"), "f", 0o600); err == nil {
		t.Errorf("a link in the folder's place is followed: %v", f)
	}
	if found, err := os.ReadDir(outside); err != nil || len(found) != 1 {
		t.Errorf("outside there is %v, %v", found, err)
	}
	for range 2 {
		f, err := AppendBeneath(dir, "a/b/log", 0o640)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("line\n"); err != nil {
			t.Error(err)
		}
		f.Close()
	}
	if data, err := os.ReadFile(filepath.Join(dir, "a/b/log")); err != nil || string(data) != "line\nline\n" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestAppendingTakesRegularFilesOnly(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := AppendBeneath(dir, "fifo", 0o600); done <- err }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a fifo is taken")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("hangs at a fifo")
	}
	if err := syscall.Mknod(filepath.Join(dir, "null"), syscall.S_IFCHR|0o600, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	if _, err := AppendBeneath(dir, "null", 0o600); err == nil {
		t.Error("a device is taken")
	}
}
