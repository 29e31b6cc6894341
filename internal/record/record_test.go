// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

type body struct{ Name string }

var header = Header{Kind: "thing", Version: 1, Boot: "b1"}

func TestARecordComesBackAsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	for _, name := range []string{"one", "two"} {
		if err := Write(path, header, body{name}); err != nil {
			t.Fatal(err)
		}
	}
	var b body
	h, err := Read(path, "thing", 1, &b)
	if err != nil || h != header || b.Name != "two" {
		t.Fatalf("got %+v %+v %v", h, b, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestWhatCannotBeTrustedIsNamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	if err := Write(path, header, body{"x"}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := []byte(string(good))
	flipped[len(flipped)-5] ^= 1
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":     {nil, ErrCorrupt},
		"torn":      {good[:len(good)/2], ErrCorrupt},
		"bit flip":  {flipped, ErrCorrupt},
		"other":     {[]byte(`{"kind":"other","version":1}`), ErrCorrupt},
		"new build": {[]byte(`{"kind":"thing","version":2}`), ErrVersion},
	} {
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		var b body
		if _, err := Read(path, "thing", 1, &b); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if _, err := Read(filepath.Join(dir, "none"), "thing", 1, &body{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: got %v", err)
	}
}

func TestAWriteThatFailsKeepsTheOldRecord(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	if err := Write(path, header, body{"old"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+".new", 0o700); err != nil { // the temporary file cannot be made
		t.Fatal(err)
	}
	if err := Write(path, header, body{strings.Repeat("x", maxFile)}); err == nil {
		t.Fatal("write succeeded")
	}
	mustRead(t, path, "old")
}

// A full disk takes a part of the line; that part must not spoil what comes after.
func TestAFullDiskKeepsTheOldRecord(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal("these tests need root: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path, filler := filepath.Join(dir, "r.json"), filepath.Join(dir, "filler")
	if err := Write(path, header, body{"old"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filler, make([]byte, 48<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	large := strings.Repeat("x", 30<<10)
	if err := Write(path, header, body{large}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want a full disk", err)
	}
	mustRead(t, path, "old")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, header, body{large}); err != nil {
		t.Fatal(err)
	}
	mustRead(t, path, large)
}

// What a kill leaves of a line at any of its bytes is not there for a reader, and no obstacle for the next writer.
func TestALineThatWasCutOffDoesNotCount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	if err := Write(path, header, body{"old"}); err != nil {
		t.Fatal(err)
	}
	before := must(t, path)
	if err := Write(path, header, body{"new"}); err != nil {
		t.Fatal(err)
	}
	whole := must(t, path)
	if !bytes.HasPrefix(whole, before) {
		t.Fatal("the second record was not appended")
	}
	for n := len(before); n < len(whole); n++ {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		mustRead(t, path, "old")
		if err := Write(path, header, body{"after"}); err != nil {
			t.Fatal(err)
		}
		mustRead(t, path, "after")
	}
}

func TestTheFileDoesNotGrowWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	for i := range 1000 {
		name := fmt.Sprintf("%d %s", i, strings.Repeat("x", 1000))
		if err := Write(path, header, body{name}); err != nil {
			t.Fatal(err)
		}
		mustRead(t, path, name)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > maxFile || info.Size() < 2000 {
		t.Fatalf("the file has %d bytes, %v", info.Size(), err)
	}
}

func TestARecordOfAnEarlierBerthIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	if err := Write(path, header, body{"old"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(must(t, path))-1)); err != nil { // it wrote no line end
		t.Fatal(err)
	}
	mustRead(t, path, "old")
	if err := Write(path, header, body{"new"}); err != nil {
		t.Fatal(err)
	}
	mustRead(t, path, "new")
}

func must(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustRead(t *testing.T, path, name string) {
	t.Helper()
	var b body
	if _, err := Read(path, "thing", 1, &b); err != nil || b.Name != name {
		t.Fatalf("got %.40q, %v, want %.40q", b.Name, err, name)
	}
}

func TestRemoveIsIdempotentAndSetAsideNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	if err := Remove(path); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 3 {
		if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		to, err := SetAside(path, filepath.Join(dir, "q"))
		if err != nil || seen[to] {
			t.Fatalf("set aside to %s, %v", to, err)
		}
		seen[to] = true
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"thing","version":1,"crc32c":0,"body":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var b body
		if _, err := decode(LastLine(data), "p", "thing", 1, &b); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("untyped error %v", err)
		}
	})
}

// A pod's life is some twenty of these.
func BenchmarkWrite(b *testing.B) {
	path := filepath.Join(b.TempDir(), "r.json")
	large := body{strings.Repeat("x", 3000)}
	for b.Loop() {
		if err := Write(path, header, large); err != nil {
			b.Fatal(err)
		}
	}
}
