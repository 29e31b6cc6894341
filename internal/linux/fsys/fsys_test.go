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

func TestLinksNeverLeadOutOfTheRoot(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"abs": outside, "up": "../../../../../../.." + outside, "etc/passwd": "/inside", "proc": "/proc/self/root" + outside} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "inside"), []byte("inside"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"abs", "up", "proc", "../../../../../../../.." + outside} {
		if data, err := ReadInRoot(root, path, 100); err == nil {
			t.Errorf("%s: read %q", path, data)
		}
	}
	if data, err := ReadInRoot(root, "/etc/passwd", 100); err != nil || string(data) != "inside" {
		t.Errorf("an absolute link inside: %q, %v", data, err)
	}
}

func TestWhatIsNoFileIsRefusedAtOnce(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := ReadInRoot(root, "fifo", 10); done <- err }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("read a fifo")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("hangs at a fifo")
	}
}

func TestReadsAreBounded(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "f"), make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadInRoot(root, "f", 10); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if _, err := ReadInRoot(root, "none", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestFoldersAreFoundInsideTheRootOnly(t *testing.T) {
	root, _ := jail(t)
	if err := os.MkdirAll(filepath.Join(root, "a/real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for at, to := range map[string]string{"abs": "/a/real", "up": "../../../../a", "proc": "/proc/self/root", "outside": "../outside", "fd": "/proc/self/fd/0"} {
		link(t, to, filepath.Join(root, at))
	}
	for path, want := range map[string]string{"a/real": "a/real", "abs": "a/real", "up/real": "a/real", "": "", "../..": "", "none": "no", "file": "no",
		"proc": "no", "outside": "no", "fd": "no"} {
		got, err := FolderInRoot(root, path)
		if want == "no" && err == nil || want != "no" && (err != nil || got != filepath.Join(root, want)) {
			t.Errorf("%q is %q, %v", path, got, err)
		}
	}
}
