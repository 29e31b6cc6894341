// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestOnlyASocketThatNobodyServesIsCleared(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := ClearStale(at("none")); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.WriteFile(at("file"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(at("file"), at("link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "link"} {
		if err := ClearStale(at(name)); !errors.Is(err, ErrNoSocket) {
			t.Errorf("%s: %v, want ErrNoSocket", name, err)
		}
		if _, err := os.Lstat(at(name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at("sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := ClearStale(at("sock")); !errors.Is(err, ErrServed) {
		t.Errorf("served: %v, want ErrServed", err)
	}
	l.Close()
	if err := ClearStale(at("sock")); err != nil {
		t.Errorf("stale: %v", err)
	}
	if _, err := os.Lstat(at("sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stale socket is still there: %v", err)
	}
}
