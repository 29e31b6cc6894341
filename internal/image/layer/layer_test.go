// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

func archiveOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCompressionIsToldByContent(t *testing.T) {
	plain := archiveOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 5, Mode: 0o644})
	var g, z bytes.Buffer
	gw := gzip.NewWriter(&g)
	gw.Write(plain)
	gw.Close()
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	zw.Write(plain)
	zw.Close()
	// A skippable frame first, as zstd:chunked has them.
	skip := append([]byte{0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, z.Bytes()...)
	for kind, blob := range map[string][]byte{"plain": plain, "gzip": g.Bytes(), "zstd": z.Bytes(), "zstd with skippable frame": skip, "trailing zeros": plain} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			r, err := Extract(t.Context(), dir, iotest.HalfReader(bytes.NewReader(blob)))
			if err != nil {
				t.Fatal(err)
			}
			if r.DiffID != digest.FromBytes(plain) {
				t.Errorf("diff ID %s", r.DiffID)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != "xxxxx" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestAnEmptyLayerIsOne(t *testing.T) {
	if r, err := Extract(t.Context(), t.TempDir(), bytes.NewReader(nil)); err != nil || r.DiffID != digest.FromBytes(nil) {
		t.Errorf("%v, %v", r, err)
	}
}

func TestImpliedFoldersAreTheOnesWithoutAnEntry(t *testing.T) {
	r, err := Extract(t.Context(), t.TempDir(), bytes.NewReader(archiveOf(t,
		tar.Header{Typeflag: tar.TypeReg, Name: "a/b/c", Mode: 0o644}, tar.Header{Typeflag: tar.TypeDir, Name: "./a/", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755}, tar.Header{Typeflag: tar.TypeReg, Name: "/d/e", Mode: 0o644},
		tar.Header{Typeflag: tar.TypeReg, Name: "top", Mode: 0o644}, tar.Header{Typeflag: tar.TypeReg, Name: "z/.wh.x"})))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/a/b", "/z"}; !slices.Equal(r.Implied, want) {
		t.Errorf("got %v, want %v", r.Implied, want)
	}
}

func openFolder(t *testing.T, dir string) Below {
	t.Helper()
	b, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestInheritTakesTheTopmostFolderAndStopsAtAWhiteout(t *testing.T) {
	top, one, two := t.TempDir(), t.TempDir(), t.TempDir()
	then := time.Unix(1500000000, 0)
	mkdir := func(path string, mode os.FileMode, uid int) {
		if err := errors.Join(os.MkdirAll(path, 0o755), os.Chown(path, uid, uid), os.Chmod(path, mode), os.Chtimes(path, then, then)); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"both", "below", "gone", "link", "file", "new"} {
		mkdir(filepath.Join(top, d), 0o755, 0)
	}
	mkdir(filepath.Join(one, "both"), 0o711, 1)
	mkdir(filepath.Join(two, "both"), 0o722, 2)
	mkdir(filepath.Join(two, "below"), os.ModeSticky|0o777, 2)
	mkdir(filepath.Join(two, "gone"), 0o722, 2)
	mkdir(filepath.Join(two, "link"), 0o722, 2)
	mkdir(filepath.Join(two, "file"), 0o722, 2)
	err := errors.Join(syscall.Mknod(filepath.Join(one, "gone"), syscall.S_IFCHR, 0), os.Symlink("/etc", filepath.Join(one, "link")),
		os.WriteFile(filepath.Join(one, "file"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if err := Inherit(top, []string{"/absent", "/below", "/both", "/file", "/gone", "/link", "/new"}, []Below{openFolder(t, one), openFolder(t, two)}); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]struct {
		mode os.FileMode
		uid  uint32
	}{"both": {0o711, 1}, "below": {os.ModeSticky | 0o777, 2}, "gone": {0o755, 0}, "link": {0o755, 0}, "file": {0o755, 0}, "new": {0o755, 0}} {
		info, err := os.Lstat(filepath.Join(top, dir))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; info.Mode() != os.ModeDir|want.mode || got != want.uid {
			t.Errorf("%s: %s of %d, want %+v", dir, info.Mode(), got, want)
		}
	}
	if info, err := os.Stat(filepath.Join(top, "both")); err != nil || !info.ModTime().Equal(then) {
		t.Errorf("time %v, %v", info.ModTime(), err)
	}
}

func TestAFullDiskIsNoCorruptLayer(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	// What announces that it does not fit is refused; the others are cut off by the disk, because small files take whole blocks.
	small := make([]tar.Header, 100)
	for i := range small {
		small[i] = tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("f", i), Size: 1, Mode: 0o644}
	}
	for kind, headers := range map[string][]tar.Header{"one file": {{Typeflag: tar.TypeReg, Name: "f", Size: 1 << 20, Mode: 0o644}}, "small files": small} {
		_, err := Extract(t.Context(), dir, bytes.NewReader(archiveOf(t, headers...)))
		if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", kind, err)
		}
	}
}

func TestAHoleIsNotLargerThanTheDisk(t *testing.T) {
	const size = "1000000000000000"
	var b bytes.Buffer
	// archive/tar reads sparse files but does not write them, so the PAX records are written by hand.
	record := func(k, v string) string {
		n := len(k) + len(v) + 3
		n += len(fmt.Sprint(n + len(fmt.Sprint(n))))
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := record("GNU.sparse.major", "0") + record("GNU.sparse.minor", "1") + record("GNU.sparse.name", "bomb") +
		record("GNU.sparse.size", size) + record("GNU.sparse.numblocks", "0") + record("GNU.sparse.map", "")
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: int64(len(pax)), Mode: 0o644, Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte(pax))
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Mode: 0o644, Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	raw := b.Bytes()
	raw[156] = 'x' // the first entry is extended attributes of the second
	sum := 0
	copy(raw[148:156], "        ")
	for _, c := range raw[:512] {
		sum += int(c)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	if _, err := Extract(t.Context(), t.TempDir(), bytes.NewReader(raw)); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "bytes that fit") {
		t.Errorf("got %v", err)
	}
}

func TestTheCallersEndIsNoCorruptLayer(t *testing.T) {
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, err := Extract(ctx, t.TempDir(), bytes.NewReader(archiveOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644})))
	if !errors.Is(err, why) || errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(archiveOf(f, tar.Header{Typeflag: tar.TypeReg, Name: "a/b", Size: 3, Mode: 0o644}, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc"},
		tar.Header{Typeflag: tar.TypeReg, Name: "l/x", Mode: 0o644}))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(t *testing.T, blob []byte) {
		if len(blob) > 1<<16 {
			return
		}
		if _, err := Extract(t.Context(), t.TempDir(), bytes.NewReader(blob)); err != nil && !errors.Is(err, ErrCorrupt) {
			var errno syscall.Errno
			if !errors.As(err, &errno) {
				t.Error(err)
			}
		}
	})
}
