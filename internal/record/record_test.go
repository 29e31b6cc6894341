// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
	flipped[len(flipped)-4] ^= 1
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
	if err := Write(path, header, body{"new"}); err == nil {
		t.Fatal("write succeeded")
	}
	var b body
	if _, err := Read(path, "thing", 1, &b); err != nil || b.Name != "old" {
		t.Fatalf("got %+v, %v", b, err)
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
		if _, err := decode(data, "p", "thing", 1, &b); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
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
