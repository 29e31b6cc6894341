// SPDX-License-Identifier: Apache-2.0

package verity

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// onExt4 is a folder on an ext4 with the feature verity. Without the kernel's part of it the test is skipped, after it has shown that the error says so.
func onExt4(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file, at := filepath.Join(dir, "ext4"), filepath.Join(dir, "at")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/sys/fs/ext4/features/verity"); err != nil {
		if err := Probe(dir); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("got %v", err)
		}
		t.Skip("/sys/fs/ext4/features has no verity: this kernel was built without CONFIG_FS_VERITY")
	}
	for _, c := range [][]string{{"truncate", "-s", "32M", file}, {"mkfs.ext4", "-q", "-O", "verity", file}, {"mount", "-o", "loop", file, at}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

func TestAGuardedFileIsMeasuredAndNotWritten(t *testing.T) {
	dir := onExt4(t)
	if err := Probe(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Measure(file); !errors.Is(err, ErrNone) {
		t.Errorf("before: %v", err)
	}
	for range 2 { // it is idempotent
		if err := Enable(file); err != nil {
			t.Fatal(err)
		}
	}
	first, err := Measure(file)
	if err != nil || len(first) != len("sha256:")+64 {
		t.Errorf("%q, %v", first, err)
	}
	if f, err := os.OpenFile(file, os.O_RDWR, 0); err == nil {
		f.Close()
		t.Error("it can be written to")
	}
	other := filepath.Join(dir, "g")
	if err := errors.Join(os.WriteFile(other, append(make([]byte, 1<<20), 1), 0o600), Enable(other)); err != nil {
		t.Fatal(err)
	}
	if second, err := Measure(other); err != nil || second == first {
		t.Errorf("%q, %v", second, err)
	}
}
