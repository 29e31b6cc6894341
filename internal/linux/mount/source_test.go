// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func source(t *testing.T, path string) *Source {
	t.Helper()
	s, err := OpenSource(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSourcesTellTheirMountsFlags(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { Detach(dir) })
	if err := (Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec"}}).On(dir); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(dir, "fifo"), link); err != nil {
		t.Fatal(err)
	}
	if flags, err := source(t, link).Flags(); err != nil || !slices.Equal(flags, []string{"nosuid", "noexec"}) {
		t.Errorf("%q, %v", flags, err)
	}
	if _, err := OpenSource(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestSourcesTellHowTheirMountPropagates(t *testing.T) {
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	t.Cleanup(func() { Detach(dir) })
	if err := (Mount{Type: "tmpfs", Source: "tmpfs"}).On(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		flag          uintptr
		shared, slave bool
	}{{syscall.MS_PRIVATE, false, false}, {syscall.MS_SHARED, true, false}} {
		if err := syscall.Mount("", dir, "", want.flag, ""); err != nil {
			t.Fatal(err)
		}
		point, shared, slave, err := source(t, below).Propagation()
		if err != nil || point != dir || shared != want.shared || slave != want.slave {
			t.Errorf("%+v: %s, shared %v, slave %v, %v", want, point, shared, slave, err)
		}
	}
	other := t.TempDir()
	t.Cleanup(func() { Detach(other) })
	if err := (Mount{Source: dir, Options: []string{"bind"}}).On(other); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("", other, "", syscall.MS_SLAVE, ""); err != nil {
		t.Fatal(err)
	}
	if _, shared, slave, err := source(t, other).Propagation(); err != nil || shared || !slave {
		t.Errorf("slave: %v, %v, %v", shared, slave, err)
	}
}
