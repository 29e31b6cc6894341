// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func mustMount(t *testing.T, m Mount, target string) {
	t.Helper()
	if err := m.On(target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Detach(target); err != nil {
			t.Error(err)
		}
	})
}

func TestAMountIsThereUntilDetached(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // stacked
		mustMount(t, Mount{"tmpfs", "shm", []string{"nosuid", "nodev", "size=64k"}}, dir)
	}
	if points, err := Below(dir); err != nil || len(points) != 2 {
		t.Fatalf("mounts below: %v, %v", points, err)
	}
	if err := Detach(dir); err != nil {
		t.Fatal(err)
	}
	if points, err := Below(dir); err != nil || len(points) != 0 {
		t.Fatalf("after detach: %v, %v", points, err)
	}
}

func TestDetachIsIdempotent(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, file, filepath.Join(dir, "none"), filepath.Join(file, "below")} {
		if err := Detach(p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestReadOnlyBindRefusesWrites(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	mustMount(t, Mount{"", from, []string{"rbind", "ro"}}, to)
	if err := os.WriteFile(filepath.Join(to, "f"), nil, 0o600); err == nil {
		t.Fatal("wrote through a read-only bind")
	}
}

func TestRemoveAllNeverCrossesAMount(t *testing.T) {
	users, state := t.TempDir(), t.TempDir()
	precious := filepath.Join(users, "precious")
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(state, "rootfs", "data")
	if err := os.MkdirAll(target, 0o700); err != nil {
		t.Fatal(err)
	}
	mustMount(t, Mount{"", users, []string{"bind"}}, target)
	if err := RemoveAll(state); err == nil || !strings.Contains(err.Error(), "still mounted") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal("the user's file is gone:", err)
	}
	if err := DetachBelow(state); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal("the user's file is gone:", err)
	}
}

func TestOptionsOverAPageAreRefused(t *testing.T) {
	err := Mount{"overlay", "overlay", []string{"lowerdir=" + strings.Repeat("/x:", 2000)}}.On(t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "one page") {
		t.Fatalf("got %v", err)
	}
}
