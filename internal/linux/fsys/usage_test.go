// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestUsageIsWhatDuCounts(t *testing.T) {
	root := t.TempDir()
	write := func(name string, size int) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a", 100_000)
	write("b/c/d", 5000)
	write("b/empty", 0)
	if err := os.Link(filepath.Join(root, "a"), filepath.Join(root, "b", "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(root, "b/empty"), 1<<30); err != nil { // sparse
		t.Fatal(err)
	}
	for i := range 600 {
		write("many/"+strconv.Itoa(i), 1)
	}
	got, err := UsageOf(t.Context(), root, 0)
	if err != nil {
		t.Fatal(err)
	}
	bytes, inodes := du(t, root, "-s", "-B1"), du(t, root, "-s", "--inodes")
	if got.Bytes != bytes || got.Inodes != inodes {
		t.Errorf("got %+v, du says %d bytes, %d inodes", got, bytes, inodes)
	}
	if _, err := UsageOf(t.Context(), root, 100); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v, want ErrTooMany", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := UsageOf(ctx, root, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func du(t *testing.T, root string, args ...string) uint64 {
	t.Helper()
	out, err := exec.Command("du", append(args, root)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUsageGoesNoDeeperThanAPathCanSay(t *testing.T) {
	root := t.TempDir()
	dir, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 200)
	for range 40 {
		if err := dir.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := dir.OpenRoot(name)
		if err != nil {
			t.Fatal(err)
		}
		dir.Close()
		dir = next
	}
	dir.Close()
	got, err := UsageOf(t.Context(), root, 0)
	if err != nil || got.Inodes < 15 || got.Inodes > 41 {
		t.Errorf("got %+v, %v", got, err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("rm", "-rf", root).CombinedOutput(); err != nil { // Go's RemoveAll copes, the shell's is quicker
			t.Errorf("%v: %s", err, out)
		}
	})
}

func TestUsageOfNothingIsAnError(t *testing.T) {
	if _, err := UsageOf(t.Context(), filepath.Join(t.TempDir(), "none"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
