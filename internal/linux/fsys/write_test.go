// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// jail is a root beside a folder that nothing may touch.
func jail(t *testing.T) (root, outside string) {
	t.Helper()
	base := t.TempDir()
	root, outside = filepath.Join(base, "root"), filepath.Join(base, "outside")
	for _, dir := range []string{root, outside} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "keep"), []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		entries, err := os.ReadDir(outside)
		if err != nil || len(entries) != 1 {
			t.Errorf("outside of the root was touched: %v, %v", entries, err)
		}
		if data, err := os.ReadFile(filepath.Join(outside, "keep")); err != nil || string(data) != "keep" {
			t.Errorf("a file outside of the root was changed: %q, %v", data, err)
		}
	})
	return root, outside
}

func link(t *testing.T, to, at string) {
	t.Helper()
	if err := os.Symlink(to, at); err != nil {
		t.Fatal(err)
	}
}

func TestFoldersAreMadeInsideTheRootOnly(t *testing.T) {
	root, outside := jail(t)
	link(t, outside, filepath.Join(root, "abs"))
	link(t, "../outside", filepath.Join(root, "up"))
	if err := os.Mkdir(filepath.Join(root, "real"), 0o711); err != nil {
		t.Fatal(err)
	}
	link(t, "/real", filepath.Join(root, "inside"))
	for _, dir := range []string{"abs/x", "up/x"} {
		if err := MkdirAllInRoot(root, dir, 0o700); err == nil {
			t.Errorf("%s: made", dir)
		}
	}
	for _, dir := range []string{"/", "a/b/c", "inside/d", "../../e", "real"} {
		if err := MkdirAllInRoot(root, dir, 0o777); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
	for dir, mode := range map[string]fs.FileMode{"a/b/c": 0o777, "real/d": 0o777, "e": 0o777, "real": 0o711} {
		if info, err := os.Stat(filepath.Join(root, dir)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
}

func TestCreatingNeverWritesThroughALink(t *testing.T) {
	root, outside := jail(t)
	link(t, filepath.Join(outside, "keep"), filepath.Join(root, "abs"))
	link(t, "/target", filepath.Join(root, "dangling"))
	for _, file := range []string{"abs", "dangling"} {
		if _, err := CreateInRoot(root, file, 0o600); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", file, err)
		}
	}
	f, err := CreateInRoot(root, "new", 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Error(err)
	}
}

func TestRemovingNeverFollowsALink(t *testing.T) {
	root, outside := jail(t)
	if err := os.MkdirAll(filepath.Join(root, "a/b"), 0o700); err != nil {
		t.Fatal(err)
	}
	link(t, outside, filepath.Join(root, "a/b/abs"))
	link(t, "../outside", filepath.Join(root, "up"))
	for _, target := range []string{"up/keep", "a", "up", "none", "none/below"} {
		if err := RemoveAllInRoot(root, target); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	for _, target := range []string{"", "/", "a/..", "../.."} {
		if err := RemoveAllInRoot(root, target); err == nil {
			t.Errorf("%q: removed the root", target)
		}
	}
}

func TestDevicesAreNotOpened(t *testing.T) {
	root := t.TempDir()
	node := filepath.Join(root, "null")
	if err := syscall.Mknod(node, syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	if f, err := OpenInRoot(root, "null"); err == nil || !strings.Contains(err.Error(), "want a file") {
		t.Errorf("%v, %v", f, err)
	}
}

// While anything is renamed on the machine, the kernel answers EAGAIN to a look-up through "..": readers must not see it.
func TestLookUpsSurviveRenamesElsewhere(t *testing.T) {
	root, other := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "a/b/c"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	one, two := filepath.Join(other, "1"), filepath.Join(other, "2")
	if err := os.Mkdir(one, 0o700); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				os.Rename(one, two)
				os.Rename(two, one)
			}
		}
	}()
	for range 3000 {
		if _, err := ReadInRoot(root, "a/b/c/../../../f", 10); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	<-done
}

func TestAtomicWrites(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, w := range []Write{{Path: path, Data: []byte("one"), Perm: 0o600}, {Path: path, Data: []byte("two"), Perm: 0o644, Sync: true}} {
		if err := w.Atomic(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil || string(data) != string(w.Data) {
			t.Errorf("%q, %v", data, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != w.Perm {
			t.Errorf("%v, %v", info, err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (Write{Path: filepath.Join(dir, "folder"), Perm: 0o600}).Atomic(); err == nil {
		t.Error("replaced a folder")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestAFilledWriteReplacesWhatACrashHasLeft(t *testing.T) {
	dir := t.TempDir()
	path, temp := filepath.Join(dir, "f"), filepath.Join(dir, ".f.part")
	for _, file := range []string{path, temp} {
		if err := os.WriteFile(file, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	broken := errors.New("broken")
	for _, fails := range []error{broken, nil} {
		w := Write{Path: path, Temp: temp, Perm: 0o600, Fill: func(w io.Writer) error {
			if _, err := io.WriteString(w, "new"); err != nil {
				return err
			}
			return fails
		}}
		if err := w.Atomic(); !errors.Is(err, fails) {
			t.Errorf("%v, want %v", err, fails)
		}
		want := map[bool]string{true: "new", false: "old"}[fails == nil]
		if data, err := os.ReadFile(path); err != nil || string(data) != want {
			t.Errorf("%q, %v, want %q", data, err, want)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
	}
}
