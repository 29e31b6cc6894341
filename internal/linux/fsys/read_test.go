// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestOnlyRegularFilesOfSomeSizeAreRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(at("file"), []byte("12345678"), 0o600), os.Symlink("file", at("link")), syscall.Mkfifo(at("fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "link"} {
		if data, err := ReadFile(at(name), 8); err != nil || string(data) != "12345678" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if _, err := ReadFile(at("file"), 7); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a file of 8 bytes, 7 allowed: %v", err)
	}
	if _, err := ReadFile(at("none"), 8); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, path := range []string{at("fifo"), dir, "/dev/zero"} {
		if _, err := ReadFile(path, 8); err == nil || !strings.Contains(err.Error(), "want a file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
