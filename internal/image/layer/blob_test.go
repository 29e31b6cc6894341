// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"github.com/opencontainers/go-digest"
)

func TestABlobHasTheLayersDigest(t *testing.T) {
	raw := append(layerOf(t, reg("f", "x")), make([]byte, 4096)...) // some archives end with more zeros than needed
	f, err := os.Create(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := Convert(t.Context(), f, bytes.NewReader(raw))
	if err != nil || b.DiffID != digest.FromBytes(raw) {
		t.Errorf("%v, %v", b, err)
	}
}

// TestBlobsInherit makes a layer that goes into folders without naming them, over a blob over a folder.
func TestBlobsInherit(t *testing.T) {
	bottom := t.TempDir()
	if _, err := Extract(t.Context(), bottom, bytes.NewReader(layerOf(t, dir("both", 0o700), dir("bottom", 0o1777), dir("hidden", 0o700)))); err != nil {
		t.Fatal(err)
	}
	middle := filepath.Join(t.TempDir(), "b")
	owned := dir("both", 0o2750)
	owned.Uid, owned.Gid = 70000, 7
	if _, err := blobOf(t, middle, layerOf(t, owned, reg(".wh.hidden", ""))); err != nil {
		t.Fatal(err)
	}
	blob, err := OpenBlob(middle)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	at, implied := converted(t, layerOf(t, reg("both/f", ""), reg("bottom/f", ""), reg("hidden/f", ""), reg("new/f", "")), blob, openFolder(t, bottom))
	if len(implied) != 4 {
		t.Errorf("implied: %v", implied)
	}
	got := described(t, at)
	for name, want := range map[string]string{"/both": "mode 42750 owner 70000:7", "/bottom": "mode 41777 owner 0:0", "/hidden": "mode 40755 owner 0:0", "/new": "mode 40755 owner 0:0"} {
		if !strings.HasPrefix(got[name], want+" ") {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
	}
}

func TestWhiteoutsOfOneLayerHideOnlyWhatIsBelow(t *testing.T) {
	at, _ := converted(t, layerOf(t, reg("before", "1"), reg(".wh.before", ""), reg(".wh.after", ""), reg("after", "2"), reg("dir/f", ""), reg(".wh.dir", ""),
		reg(".wh.made", ""), dir("made", 0o700), reg(".wh.twice", ""), reg(".wh.twice", "")))
	got := described(t, at)
	for name, want := range map[string]string{"/before": "mode 100644", "/after": "mode 100644", "/dir/f": "mode 100644", "/twice": "mode 20000"} {
		if !strings.HasPrefix(got[name], want) {
			t.Errorf("%s: %q, want %s", name, got[name], want)
		}
	}
	for _, name := range []string{"/dir", "/made"} {
		if !strings.Contains(got[name], opaqueXattr+`="y"`) {
			t.Errorf("%s is not opaque: %s", name, got[name])
		}
	}
}

func TestLayersOfNoHonestImageAreCorrupt(t *testing.T) {
	odd := func(h tar.Header) []entry { return []entry{{Header: h}} }
	for name, entries := range map[string][]entry{
		"hard link to nothing":       {link(tar.TypeLink, "a", "b")},
		"hard link to itself":        {reg("a", ""), link(tar.TypeLink, "a", "a")},
		"hard link to a folder":      {dir("a", 0o755), link(tar.TypeLink, "b", "a")},
		"hard link above":            {link(tar.TypeLink, "a", "../../etc/passwd")},
		"links in a circle":          {link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "a"), reg("a/f", "")},
		"a link that grows":          {link(tar.TypeSymlink, "a", "a/a/a/a"), reg("a/f", "")},
		"below a file":               {reg("a", ""), reg("a/b", "")},
		"name too long":              {reg(strings.Repeat("n", 256), "")},
		"path too long":              {reg(strings.Repeat("n/", 3000)+"f", "")},
		"link too long":              {link(tar.TypeSymlink, "a", strings.Repeat("t", 4096))},
		"empty link":                 {link(tar.TypeSymlink, "a", "")},
		"whiteout of nothing":        {reg("a/.wh.", "")},
		"whiteout of the folder":     {reg("a/.wh..", "")},
		"whiteout of the one above":  {reg("a/.wh...", "")},
		"device out of range":        odd(tar.Header{Typeflag: tar.TypeChar, Name: "d", Devmajor: 1 << 20}),
		"negative owner":             odd(tar.Header{Typeflag: tar.TypeReg, Name: "f", Uid: -7}),
		"attribute's value too long": {withXattrs(reg("f", ""), map[string]string{"user.a": strings.Repeat("v", 70000)})},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := blobOf(t, filepath.Join(t.TempDir(), "b"), layerOf(t, entries...))
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestABlobTakesNoMoreThanTheDiskHas(t *testing.T) {
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(small, syscall.MNT_DETACH) })
	_, err := blobOf(t, filepath.Join(small, "b"), layerOf(t, reg("f", strings.Repeat("x", 2<<20))))
	if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestHolesTakeNoSpace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "b")
	if _, err := blobOf(t, file, layerOf(t, reg("f", "x"+strings.Repeat("\x00", 32<<20)))); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size < 32<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes take %d on disk", st.Size, st.Blocks*512)
	}
}

func TestConvertEndsWithItsContext(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if _, err := Convert(ctx, f, bytes.NewReader(layerOf(t, reg("f", "x")))); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}

// FuzzConvert holds what strangers write against the reader of another project: what becomes a blob can be read from end to end.
func FuzzConvert(f *testing.F) {
	for name, files := range fixtures() {
		if raw := layerOf(f, files...); len(raw) < 16<<10 && name != "deep" { // which takes that reader seconds
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		file := filepath.Join(t.TempDir(), "b")
		blob, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer blob.Close()
		b, err := convert(t.Context(), blob, bytes.NewReader(raw), &entries{free: 16 << 20, inodes: 1000, memory: maxMemory})
		if err != nil {
			return
		}
		if err := b.Finish(nil); err != nil {
			return
		}
		img, err := goerofs.Open(blob)
		if err != nil {
			t.Fatal(err)
		}
		err = fs.WalkDir(img, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			r, err := img.Open(p)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(io.Discard, r)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
