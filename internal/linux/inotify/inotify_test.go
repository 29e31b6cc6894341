// SPDX-License-Identifier: Apache-2.0

package inotify

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func watcher(t *testing.T) *Watcher {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func TestOnlyWhatIsAskedForWakesTheReader(t *testing.T) {
	w, dir := watcher(t), t.TempDir()
	busy, inside := filepath.Join(dir, "busy"), filepath.Join(dir, "busy", "inside")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	add := func(dir string, mask Mask) int {
		t.Helper()
		n, err := w.Add(dir, mask)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	add(busy, Entries|Self)
	above := add(busy, Self) // the same watch, which wants less now
	within := add(inside, Entries|Contents|Self)
	for _, name := range []string{busy + "/noise", inside + "/file"} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(busy, busy+".old"); err != nil {
		t.Fatal(err)
	}
	seen := map[Event]bool{}
	for moved := (Event{Watch: above, Mask: Self & 0x800}); !seen[moved]; { // IN_MOVE_SELF
		all, err := w.Read()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if seen[e] = true; e.Watch == above && e.Name != "" {
				t.Errorf("noise: %+v", e)
			}
		}
	}
	if !seen[Event{Watch: within, Mask: Entries & 0x100, Name: "file"}] || !seen[Event{Watch: within, Mask: 0x8, Name: "file"}] {
		t.Errorf("got %+v", seen)
	}
	if err := errors.Join(w.Remove(within), w.Remove(within)); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsARead(t *testing.T) {
	w := watcher(t)
	ended := make(chan error, 1)
	go func() { _, err := w.Read(); ended <- err }()
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := w.Add(t.TempDir(), Self); err == nil {
		t.Error("a closed one watches")
	}
}

func TestWhatIsNoFolderCannotBeWatched(t *testing.T) {
	w, dir := watcher(t), t.TempDir()
	if _, err := w.Add(filepath.Join(dir, "none"), Self); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Add(filepath.Join(dir, "file"), Self); err == nil {
		t.Error("a file is watched as a folder")
	}
}

func TestRecordsThatAreCutOff(t *testing.T) {
	record := append([]byte{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0}, "name\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	for cut := range record {
		if all := parse(record[:cut]); len(all) != 0 {
			t.Errorf("%d bytes: %+v", cut, all)
		}
	}
	if all := parse(append(record, record[:20]...)); len(all) != 1 || all[0] != (Event{Watch: 1, Mask: 0x100, Name: "name"}) {
		t.Errorf("got %+v", all)
	}
}
