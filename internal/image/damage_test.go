// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestALayerOfWhichNothingIsLeft loses a snapshot with its folder, as a file system's own check does: the daemon starts, the image is not listed, and
// pulled again it is whole.
func TestALayerOfWhichNothingIsLeft(t *testing.T) {
	for name, change := range forms {
		t.Run(name, func(t *testing.T) {
			dir, reg := t.TempDir(), newRegistry(t)
			s := openWith(t, dir, change)
			other := mustPull(t, s, reg.push(t, "other:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"o": "other"}))))
			ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"d/f": "x"}), layerOf(t, map[string]string{"d/g": "y"})))
			im := mustPull(t, s, ref)
			info, err := s.snapshots.Stat(scoped(t.Context()), im.ChainID)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.Close(), os.RemoveAll(filepath.Dir(info.Labels[upperLabel]))); err != nil {
				t.Fatal(err)
			}
			s = openWith(t, dir, change)
			if all := s.List(); len(all) != 1 || all[0].ID != other.ID {
				t.Errorf("images are %v", all)
			}
			if r, found := check(t, s, false); r.Damaged != 1 {
				t.Errorf("found %v", found)
			}
			im = mustPull(t, s, ref)
			if got := readInRootfs(t, s, im, "d/g"); got != "y" {
				t.Errorf("got %q", got)
			}
			assertOnly(t, s, dir, im, other)
		})
	}
}

// TestADamagedImageCanBeRemoved: it is not listed, but what is left of it takes space until it is pulled again, which nobody may want.
func TestADamagedImageCanBeRemoved(t *testing.T) {
	for name, remove := range map[string]func(s *Store, ref string) error{
		"by name": func(s *Store, ref string) error { return s.Remove(t.Context(), ref) },
		"by the collector of unused images": func(s *Store, _ string) error {
			_, err := s.Prune(t.Context(), PruneRequest{InUse: func() map[string]bool { return nil }})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, reg := t.TempDir(), newRegistry(t)
			s := openStore(t, dir)
			ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"}), layerOf(t, map[string]string{"g": "y"})))
			im := mustPull(t, s, ref)
			folder, err := s.folderOf(scoped(t.Context()), im.ChainID)
			if err == nil {
				err = s.quarantine(t.Context(), folder, ErrCorrupt)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := remove(s, ref); err != nil {
				t.Fatal(err)
			}
			assertOnly(t, s, dir)
		})
	}
}
