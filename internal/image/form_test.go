// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/linux/userns"
)

func form(snapshotter string) func(*Config) {
	return func(c *Config) { c.Snapshotter = snapshotter }
}

// inRoom is how kernels before Linux 6.15 want EROFS files to be mounted.
func inRoom(c *Config) { c.Snapshotter, c.wantsRoom = erofsForm, true }

var forms = map[string]func(*Config){erofsForm: form(erofsForm), "erofs in a room": inRoom, overlayfs: form(overlayfs)}

func TestRootFileSystemsOfBothForms(t *testing.T) {
	reg := newRegistry(t)
	im := imageOf(t, v1.Config{},
		tarLayer(t, tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, tar.Header{Typeflag: tar.TypeDir, Name: "old/", Mode: 0o755},
			tar.Header{Typeflag: tar.TypeReg, Name: "old/f", Mode: 0o644}, tar.Header{Typeflag: tar.TypeReg, Name: "gone", Mode: 0o644},
			tar.Header{Typeflag: tar.TypeReg, Name: "mine", Mode: 0o4711, Uid: 7, Gid: 8}),
		tarLayer(t, tar.Header{Typeflag: tar.TypeReg, Name: "tmp/x", Mode: 0o644}, tar.Header{Typeflag: tar.TypeReg, Name: ".wh.gone"},
			tar.Header{Typeflag: tar.TypeReg, Name: "old/.wh..wh..opq"}, tar.Header{Typeflag: tar.TypeReg, Name: "old/new", Mode: 0o644}),
		tarLayer(t, tar.Header{Typeflag: tar.TypeReg, Name: "tmp/y", Mode: 0o600}))
	ref := reg.push(t, "layered:1", im)
	ns, err := userns.Open(userns.Mapping{UIDs: userns.Range{Host: 1 << 20, Size: 65536}, GIDs: userns.Range{Host: 1 << 20, Size: 65536}})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	owner := &Owner{UserNS: fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), UID: 1 << 20, GID: 1 << 20}
	for snapshotter, change := range forms {
		for name, owner := range map[string]*Owner{"": nil, " in a user namespace": owner} {
			t.Run(snapshotter+name, func(t *testing.T) {
				s := openWith(t, t.TempDir(), change)
				im := mustPull(t, s, ref)
				r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: im.ID, VolumeIDs: []string{im.ID}, Owner: owner})
				if err != nil {
					t.Fatal(err)
				}
				if (r.Root.Mounts != nil) != (snapshotter != overlayfs) {
					t.Errorf("%d mounts of layers", len(r.Root.Mounts))
				}
				shift := 0
				if owner != nil {
					shift = owner.UID
				}
				for _, root := range []string{at(t, r.Root), at(t, r.Volumes[0])} {
					for path, mode := range map[string]os.FileMode{"tmp": os.ModeDir | os.ModeSticky | 0o777, "tmp/x": 0o644, "tmp/y": 0o600, "old/new": 0o644, "mine": os.ModeSetuid | 0o711} {
						if info, err := os.Lstat(filepath.Join(root, path)); err != nil || info.Mode() != mode {
							t.Errorf("%s: %v, %v", path, info, err)
						}
					}
					for _, path := range []string{"gone", "old/f"} {
						if _, err := os.Lstat(filepath.Join(root, path)); !errors.Is(err, os.ErrNotExist) {
							t.Errorf("%s: %v", path, err)
						}
					}
					if got := ownerOf(t, root+"/mine"); got != shift+7 {
						t.Errorf("belongs to %d, want %d", got, shift+7)
					}
				}
			})
		}
	}
}

func TestLayersOfBothFormsMakeOneImage(t *testing.T) {
	for name, change := range forms {
		if name != overlayfs {
			t.Run(name, func(t *testing.T) { bothForms(t, change) })
		}
	}
}

func bothForms(t *testing.T, change func(*Config)) {
	reg, dir := newRegistry(t), t.TempDir()
	base := layerOf(t, map[string]string{"base": "1", "both": "1"})
	s := openWith(t, dir, form(overlayfs))
	mustPull(t, s, reg.push(t, "base:1", imageOf(t, v1.Config{}, base)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openWith(t, dir, change)
	im := mustPull(t, s, reg.push(t, "top:1", imageOf(t, v1.Config{}, base, layerOf(t, map[string]string{"both": "2", "top": "2"}))))
	for file, want := range map[string]string{"base": "1", "both": "2", "top": "2"} {
		if got := readInRootfs(t, s, im, file); got != want {
			t.Errorf("%s: %q", file, got)
		}
	}
}

func TestAnErofsLayerIsMountedOnceAndUnmountedWithItsLastContainer(t *testing.T) {
	for name, change := range forms {
		if name != overlayfs {
			t.Run(name, func(t *testing.T) { mountedOnce(t, change) })
		}
	}
}

func mountedOnce(t *testing.T, change func(*Config)) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), change)
	base := layerOf(t, map[string]string{"f": "1"})
	one := mustPull(t, s, reg.push(t, "one:1", imageOf(t, v1.Config{}, base)))
	two := mustPull(t, s, reg.push(t, "two:1", imageOf(t, v1.Config{}, base, layerOf(t, map[string]string{"g": "2"}))))
	var last []*mount.Layer
	for i, im := range []Image{one, one, two} {
		r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: fmt.Sprintf("c%d", i), ImageID: im.ID})
		if err != nil {
			t.Fatal(err)
		}
		m := r.Root.Mounts[len(r.Root.Mounts)-1]
		if last != nil && m != last[0] {
			t.Error("the base layer is mounted more than once")
		}
		last = []*mount.Layer{m}
	}
	if n := len(s.lowers.all); n != 2 {
		t.Errorf("%d layers are open, want 2", n)
	}
	used, err := s.FSInfo(t.Context())
	if err != nil || used.UsedBytes < 3*4096 {
		t.Errorf("%+v, %v", used, err)
	}
	for i := range 3 {
		if err := s.RemoveRootfs(t.Context(), fmt.Sprintf("c%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.lowers.all); n != 0 {
		t.Errorf("%d layers are still open", n)
	}
	for _, im := range []Image{one, two} {
		if err := s.Remove(t.Context(), im.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the blobs are gone", func() bool {
		left, err := filepath.Glob(filepath.Join(s.cfg.Root, overlayfs, "snapshots", "*", blobName))
		return err == nil && len(left) == 0
	})
	if after, err := s.FSInfo(t.Context()); err != nil || after.UsedBytes >= 4096 {
		t.Errorf("%+v, %v", after, err)
	}
}

func blobsOf(t *testing.T, s *Store) []string {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(s.cfg.Root, overlayfs, "snapshots", "*", blobName))
	if err != nil {
		t.Fatal(err)
	}
	return blobs
}

func TestADamagedBlobIsPulledAgainAndBreaksNothingElse(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	s := openWith(t, dir, form(erofsForm))
	ref := reg.push(t, "bad:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"}), layerOf(t, map[string]string{"dir/g": "1"})))
	bad := mustPull(t, s, ref)
	blobs := blobsOf(t, s)
	good := mustPull(t, s, reg.push(t, "good:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "2"}))))
	for round, damage := range map[string]func(file string) error{
		"overwritten": func(file string) error { return os.WriteFile(file, []byte(strings.Repeat("?", 8192)), 0o600) },
		"cut":         func(file string) error { return os.Truncate(file, 0) },
		"lost":        os.Remove,
	} {
		for _, blob := range blobs {
			if err := damage(blob); err != nil {
				t.Fatal(err)
			}
			if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c1", ImageID: bad.ID}); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s: got %v", round, err)
			}
			if round == "lost" { // is found by the next life
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openWith(t, dir, form(erofsForm))
			}
			if im, err := s.Status(ref); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: it is still listed: %v, %v", round, im.ID, err)
			}
			if got := readInRootfs(t, s, good, "f"); got != "2" {
				t.Errorf("%s: the other image: %q", round, got)
			}
			if again := mustPull(t, s, ref); again.ID != bad.ID {
				t.Error(again.ID)
			}
			for _, file := range []string{"f", "dir/g"} {
				if got := readInRootfs(t, s, bad, file); got != "1" {
					t.Errorf("%s: mended: %s is %q", round, file, got)
				}
			}
		}
	}
}
