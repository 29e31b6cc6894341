// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// flip changes one bit of a file, as a disk does that rots.
func flip(t *testing.T, file string, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func (s *Store) blobFile(id string) string {
	d := digest.Digest(id)
	return filepath.Join(s.cfg.Root, contentDir, "blobs", d.Algorithm().String(), d.Encoded())
}

func check(t *testing.T, s *Store, repair bool) (CheckResult, []Damage) {
	t.Helper()
	var found []Damage
	got, err := s.Check(t.Context(), CheckRequest{Repair: repair, Damaged: func(d Damage) { found = append(found, d) },
		Repaired: func(ref string, err error) {
			if err != nil {
				t.Errorf("repair %s: %v", ref, err)
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Damaged != len(found) {
		t.Errorf("%d damaged, %d reported", got.Damaged, len(found))
	}
	return got, found
}

func TestAHealthyStoreIsFoundHealthy(t *testing.T) {
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			reg := newRegistry(t)
			s := openWith(t, t.TempDir(), func(c *Config) { c.Snapshotter, c.KeepLayers = snapshotter, true })
			im := mustPull(t, s, reg.push(t, "whole:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"}), layerOf(t, map[string]string{"g": "2"}))))
			got, found := check(t, s, false)
			unchecked := 0
			if snapshotter == overlayfs {
				unchecked = 2
			}
			if len(found) > 0 || got.Images != len(im.RepoTags)+len(im.RepoDigests) || got.Blobs != 4 || got.Layers != 2 || got.Unchecked != unchecked || got.Bytes == 0 {
				t.Errorf("%+v %v", got, found)
			}
		})
	}
}

// One bit is changed of what is kept of one of two images, while a container runs from it.
func TestRotIsFoundQuarantinedAndMended(t *testing.T) {
	for what, file := range map[string]func(s *Store, im Image) string{
		"data of a layer": func(s *Store, _ Image) string { return blobsOf(t, s)[0] },
		"configuration":   func(s *Store, im Image) string { return s.blobFile(im.ID) },
		"manifest": func(s *Store, im Image) string {
			return s.blobFile(im.RepoDigests[0][strings.Index(im.RepoDigests[0], "@")+1:])
		},
	} {
		for _, repair := range []bool{false, true} {
			name := what
			if repair {
				name += " repaired at once"
			}
			t.Run(name, func(t *testing.T) {
				reg := newRegistry(t)
				s := openWith(t, t.TempDir(), form(erofsForm))
				ref := reg.push(t, "bad:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": strings.Repeat("good", 5000)})))
				bad := mustPull(t, s, ref)
				runs := readable(t, s, bad, "before")
				target := file(s, bad)
				good := mustPull(t, s, reg.push(t, "good:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "2"}))))
				info, err := os.Stat(target)
				if err != nil {
					t.Fatal(err)
				}
				flip(t, target, info.Size()/2)
				fetched := reg.blobs.Load()
				_, found := check(t, s, repair)
				if len(found) != 1 || !found[0].Quarantined || len(found[0].Images) != 2 || found[0].Reason == nil {
					t.Fatalf("found %+v", found)
				}
				if _, err := os.ReadFile(runs); err != nil {
					t.Errorf("the container that runs: %v", err)
				}
				if got := readInRootfs(t, s, good, "f"); got != "2" {
					t.Errorf("the other image: %q", got)
				}
				if !repair {
					if _, err := s.Status(ref); !errors.Is(err, ErrNotFound) {
						t.Errorf("it is still listed: %v", err)
					}
					if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "new", ImageID: bad.ID}); err == nil {
						t.Error("a new container got it")
					}
					mustPull(t, s, ref)
				}
				if n := reg.blobs.Load() - fetched; n > 1 {
					t.Errorf("%d blobs were fetched for one that was damaged", n)
				}
				if got := readInRootfs(t, s, bad, "f"); got != strings.Repeat("good", 5000) {
					t.Errorf("mended: %d bytes", len(got))
				}
				if _, again := check(t, s, false); len(again) > 0 {
					t.Errorf("after the repair: %v", again)
				}
				left, err := filepath.Glob(filepath.Join(s.cfg.Root, overlayfs, "snapshots", "*", "*"+damagedSuffix))
				if err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
			})
		}
	}
}

// readable gives the image to a container that runs on, and returns a file of it.
func readable(t *testing.T, s *Store, im Image, id string) string {
	t.Helper()
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: im.ID})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(at(t, r.Root), "f")
}

func TestADamagedDocumentDoesNotKeepAnImageFromBeingPulled(t *testing.T) {
	for what, damage := range map[string]func(t *testing.T, file string){
		"changed": func(t *testing.T, file string) { flip(t, file, 5) },
		"empty": func(t *testing.T, file string) {
			if err := os.Truncate(file, 0); err != nil {
				t.Fatal(err)
			}
		},
		"lost": func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			reg, dir := newRegistry(t), t.TempDir()
			s := openWith(t, dir, form(erofsForm))
			ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"})))
			im := mustPull(t, s, ref)
			if err := os.Chmod(s.blobFile(im.ID), 0o600); err != nil {
				t.Fatal(err)
			}
			damage(t, s.blobFile(im.ID))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openWith(t, dir, form(erofsForm))
			if _, err := s.Status(ref); !errors.Is(err, ErrNotFound) {
				t.Errorf("still listed: %v", err)
			}
			mustPull(t, s, ref)
			if got := readInRootfs(t, s, im, "f"); got != "1" {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestAKeptLayerThatRotsIsFetchedAnew(t *testing.T) {
	reg := newRegistry(t)
	s := openWith(t, t.TempDir(), func(c *Config) { c.Snapshotter, c.KeepLayers = erofsForm, true })
	im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"}))
	ref := reg.push(t, "x:1", im)
	first := mustPull(t, s, ref)
	layers, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.blobFile(d.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	flip(t, s.blobFile(d.String()), 30)
	flip(t, blobsOf(t, s)[0], 5000) // so that the layer is to be unpacked again
	if err := s.quarantine(scoped(t.Context()), filepath.Join(filepath.Dir(blobsOf(t, s)[0]), "fs"), errors.New("test")); err != nil {
		t.Fatal(err)
	}
	mustPull(t, s, ref)
	if got := readInRootfs(t, s, first, "f"); got != "1" {
		t.Errorf("%q", got)
	}
}

func TestACutLayerIsNotMounted(t *testing.T) {
	reg := newRegistry(t)
	s := openWith(t, t.TempDir(), form(erofsForm))
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": strings.Repeat("x", 100_000)})))
	im := mustPull(t, s, ref)
	if err := os.Truncate(blobsOf(t, s)[0], 64<<10); err != nil { // the superblock is whole
		t.Fatal(err)
	}
	if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: im.ID}); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	mustPull(t, s, ref)
	if got := readInRootfs(t, s, im, "f"); len(got) != 100_000 {
		t.Errorf("%d bytes", len(got))
	}
}
