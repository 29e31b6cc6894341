// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func exported(t *testing.T, s *Store, refs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Export(t.Context(), &b, refs); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWhatIsExportedIsImportedElsewhere(t *testing.T) {
	reg := newRegistry(t)
	s := openWith(t, t.TempDir(), func(c *Config) { c.KeepLayers = true })
	one := mustPull(t, s, reg.push(t, "one:1", imageOf(t, v1.Config{User: "7"}, layerOf(t, map[string]string{"f": "1"}), layerOf(t, map[string]string{"g": "2"}))))
	two := mustPull(t, s, reg.push(t, "two:2", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"h": "3"}))))
	raw := exported(t, s, one.RepoTags[0], two.ID)
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		for _, zipped := range []bool{false, true} {
			other := openWith(t, t.TempDir(), form(snapshotter))
			var in io.Reader = bytes.NewReader(raw)
			if zipped {
				var b bytes.Buffer
				w := gzip.NewWriter(&b)
				if _, err := w.Write(raw); err != nil {
					t.Fatal(err)
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				in = &b
			}
			got, err := other.Import(t.Context(), in, "")
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 2 || got[0].ID != one.ID || got[1].ID != two.ID || !slices.Equal(got[0].RepoTags, one.RepoTags) || *got[0].UID != 7 {
				t.Errorf("imported %+v", got)
			}
			for file, im := range map[string]Image{"f": one, "g": one, "h": two} {
				if data := readInRootfs(t, other, im, file); data == "" {
					t.Errorf("%s is missing", file)
				}
			}
			if err := other.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			assertOnly(t, other, filepath.Dir(other.cfg.Root), got...)
		}
	}
}

func TestAnArchiveOfDockerSaveIsImported(t *testing.T) {
	im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"}))
	tag, err := name.NewTag("example.com/saved:3")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, im, &b); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir())
	got, err := s.Import(t.Context(), &b, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].RepoTags[0] != "example.com/saved:3" {
		t.Errorf("%+v", got)
	}
	if data := readInRootfs(t, s, got[0], "f"); data != "1" {
		t.Errorf("%q", data)
	}
}

func TestExportSaysWhichSettingKeepsLayers(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, t.TempDir())
	im := mustPull(t, s, reg.push(t, "one:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"}))))
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Export(t.Context(), &b, []string{im.ID}); !errors.Is(err, ErrLayersDropped) || !strings.Contains(err.Error(), "images.keep_layers") || b.Len() > 0 {
		t.Errorf("got %v, %d bytes", err, b.Len())
	}
	if err := s.Export(t.Context(), &b, []string{"nobody"}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// without is an archive that lacks one of its files.
func without(t *testing.T, raw []byte, match string) []byte {
	t.Helper()
	var out bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(raw)), tar.NewWriter(&out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(h.Name, match) && h.Typeflag == tar.TypeReg {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAWrongArchiveIsRefusedAndLeavesNothing(t *testing.T) {
	reg := newRegistry(t)
	from := openWith(t, t.TempDir(), func(c *Config) { c.KeepLayers = true })
	im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": strings.Repeat("x", 50_000)}))
	ref := mustPull(t, from, reg.push(t, "one:1", im)).RepoTags[0]
	raw := exported(t, from, ref)
	layers, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	nameless, err := os.ReadFile(busyArchive(t))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		raw  []byte
		name string
		want error
	}{
		"no archive":      {[]byte("hello"), "", ErrCorrupt},
		"nothing":         {nil, "", ErrCorrupt},
		"cut":             {raw[:len(raw)/2], "", ErrCorrupt},
		"a layer lacking": {without(t, raw, d.Hex), "", ErrCorrupt},
		"no index":        {without(t, raw, ".json"), "", ErrCorrupt},
		"no name":         {nameless, "", ErrInvalidReference},
		"a bad name":      {nameless, "UPPER", ErrInvalidReference},
	} {
		t.Run(what, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			if _, err := s.Import(t.Context(), bytes.NewReader(c.raw), c.name); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if len(s.List()) > 0 {
				t.Error("something is listed")
			}
			if err := s.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			assertOnly(t, s, filepath.Dir(s.cfg.Root))
		})
	}
	s := openStore(t, t.TempDir())
	if got, err := s.Import(t.Context(), bytes.NewReader(nameless), "given"); err != nil || got[0].RepoTags[0] != "docker.io/library/given:latest" {
		t.Errorf("%+v, %v", got, err)
	}
}

// busyArchive is an archive of docker save whose image has no name.
func busyArchive(t *testing.T) string {
	t.Helper()
	im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"}))
	d, err := im.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest("example.com/x@" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a.tar")
	if err := tarball.WriteToFile(file, ref, im); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestTags(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, t.TempDir())
	one := mustPull(t, s, reg.push(t, "one:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"}))))
	two := mustPull(t, s, reg.push(t, "two:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "2"}))))
	for range 2 {
		im, full, err := s.Tag(t.Context(), one.ID, "mine")
		if err != nil || full != "docker.io/library/mine:latest" || im.ID != one.ID || len(im.RepoTags) != 2 {
			t.Errorf("%+v %s %v", im, full, err)
		}
	}
	if im, _, err := s.Tag(t.Context(), two.RepoTags[0], "mine:latest"); err != nil || im.ID != two.ID {
		t.Error(im.ID, err)
	}
	if im, err := s.Status(one.ID); err != nil || len(im.RepoTags) != 1 {
		t.Error(im, err)
	}
	for _, bad := range []string{"", "UPPER", "x@" + one.ID} {
		if _, _, err := s.Tag(t.Context(), one.ID, bad); !errors.Is(err, ErrInvalidReference) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, _, err := s.Tag(t.Context(), "nobody", "x"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestUntagTakesOneNameAndWithTheLastTheImage(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, t.TempDir())
	im := mustPull(t, s, reg.push(t, "one:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"}))))
	pulled := im.RepoTags[0]
	for _, name := range []string{"mine:1", "mine:2"} {
		if _, _, err := s.Tag(t.Context(), im.ID, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name    string
		left    []string
		digests int
	}{
		{"mine:1", []string{pulled, "docker.io/library/mine:2"}, 1},
		{pulled, []string{"docker.io/library/mine:2"}, 0}, // the repository's digest goes with its last tag
	} {
		got, _, err := s.Untag(t.Context(), c.name)
		slices.Sort(got.RepoTags)
		now, statusErr := s.Status(im.ID)
		slices.Sort(now.RepoTags)
		if err != nil || statusErr != nil || !slices.Equal(got.RepoTags, c.left) || !slices.Equal(now.RepoTags, c.left) || len(now.RepoDigests) != c.digests {
			t.Errorf("%s: %v, %v: told %v, has %v %v, want %v", c.name, err, statusErr, got.RepoTags, now.RepoTags, now.RepoDigests, c.left)
		}
	}
	if _, _, err := s.Untag(t.Context(), "mine:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("once more: %v", err)
	}
	if _, _, err := s.Untag(t.Context(), "mine@"+im.ID); !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalidReference) {
		t.Errorf("a digest: %v", err)
	}
	got, full, err := s.Untag(t.Context(), "mine:2")
	if err != nil || full != "docker.io/library/mine:2" || got.ID != im.ID || len(got.RepoTags) != 0 {
		t.Errorf("the last one: %+v, %s, %v", got, full, err)
	}
	if _, err := s.Status(im.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the image is still there: %v", err)
	}
}

func TestPruneTakesWhatNobodyUses(t *testing.T) {
	reg := newRegistry(t)
	s := openWith(t, t.TempDir(), func(c *Config) { c.Pinned = []string{"*/pinned:*"} })
	base := layerOf(t, map[string]string{"base": strings.Repeat("x", 1<<20)})
	used := mustPull(t, s, reg.push(t, "used:1", imageOf(t, v1.Config{}, base)))
	pinned := mustPull(t, s, reg.push(t, "pinned:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"p": "1"}))))
	idle := mustPull(t, s, reg.push(t, "idle:1", imageOf(t, v1.Config{}, base, layerOf(t, map[string]string{"f": strings.Repeat("y", 100_000)}))))
	inUse := func() map[string]bool { return map[string]bool{used.ID: true} }
	for _, dry := range []bool{true, false} {
		got, err := s.Prune(t.Context(), PruneRequest{InUse: inUse, DryRun: dry})
		if err != nil || len(got) != 1 || got[0].ID != idle.ID || got[0].Bytes < 100_000 || got[0].Bytes > 500_000 {
			t.Fatalf("dry %v: %+v, %v", dry, got, err)
		}
		if _, err := s.Status(idle.ID); (err == nil) != dry {
			t.Errorf("dry %v: %v", dry, err)
		}
	}
	for _, im := range []Image{used, pinned} {
		if _, err := s.Status(im.ID); err != nil {
			t.Error(err)
		}
	}
}
