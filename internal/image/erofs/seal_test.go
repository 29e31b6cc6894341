// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEveryChangeOfABlobIsFound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "b")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w, one := NewWriter(f), &Inode{Mode: typeReg | 0o644}
	if err := w.Data(one, strings.NewReader(strings.Repeat("x", 10_000)), 10_000); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(&Inode{Mode: typeDir | 0o755, Entries: map[string]*Inode{"f": one}}), f.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(raw []byte) error {
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return Verify(t.Context(), f)
	}
	if err := verify(whole); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(whole); at += 61 {
		broken := append([]byte(nil), whole...)
		broken[at] ^= 4
		if err := verify(broken); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	for name, raw := range map[string][]byte{"empty": nil, "cut": whole[:len(whole)-4096], "longer": append(whole, 0), "half a block": whole[:100]} {
		if err := verify(raw); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatTheFormatCannotHoldIsRefused(t *testing.T) {
	for name, i := range map[string]*Inode{"name": {Mode: typeReg}, "attribute": {Mode: typeReg, Xattrs: map[string]string{"user.a": strings.Repeat("v", 1<<16)}}} {
		f, err := os.Create(filepath.Join(t.TempDir(), "b"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		entry := "f"
		if name == "name" {
			entry = strings.Repeat("n", MaxName+1)
		}
		if err := NewWriter(f).Close(&Inode{Mode: typeDir, Entries: map[string]*Inode{entry: i}}); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
