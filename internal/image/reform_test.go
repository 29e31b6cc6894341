// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// otherForm is the form that the handler "other" wants where the node has snapshotter.
func otherForm(snapshotter string) string {
	return map[string]string{erofsForm: overlayfs, overlayfs: erofsForm}[snapshotter]
}

func withOther(snapshotter string) func(*Config) {
	return func(c *Config) {
		c.Snapshotter, c.Handlers = snapshotter, map[string]string{"other": otherForm(snapshotter), "same": snapshotter}
	}
}

// twoLayers is an image with what layers can have: whiteouts, owners, links.
func twoLayers(t *testing.T) v1.Image {
	return imageOf(t, v1.Config{},
		tarLayer(t, tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, tar.Header{Typeflag: tar.TypeReg, Name: "gone", Mode: 0o644},
			tar.Header{Typeflag: tar.TypeReg, Name: "mine", Mode: 0o4711, Uid: 7, Gid: 8}, tar.Header{Typeflag: tar.TypeLink, Name: "also", Linkname: "mine", Mode: 0o4711, Uid: 7, Gid: 8}),
		tarLayer(t, tar.Header{Typeflag: tar.TypeReg, Name: "tmp/x", Mode: 0o644}, tar.Header{Typeflag: tar.TypeReg, Name: ".wh.gone"}))
}

func looksLikeTwoLayers(t *testing.T, root string) {
	t.Helper()
	for path, mode := range map[string]os.FileMode{"tmp": os.ModeDir | os.ModeSticky | 0o777, "tmp/x": 0o644, "mine": os.ModeSetuid | 0o711, "also": os.ModeSetuid | 0o711} {
		if info, err := os.Lstat(filepath.Join(root, path)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "gone")); err == nil {
		t.Error("a whiteout hides nothing")
	}
	if got := ownerOf(t, root+"/mine"); got != 7 {
		t.Errorf("belongs to %d", got)
	}
}

// committed are the names of the layers that are kept.
func committed(t *testing.T, s *Store) (names []string) {
	t.Helper()
	err := s.snapshots.Walk(scoped(t.Context()), func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			names = append(names, info.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func rootfsFor(t *testing.T, s *Store, id, handler string, im Image) Rootfs {
	t.Helper()
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, Handler: handler, ImageID: im.ID})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAHandlersSnapshotterGetsItsLayersWithoutTheRegistry(t *testing.T) {
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			reg, dir := newRegistry(t), t.TempDir()
			s := openWith(t, dir, withOther(snapshotter))
			im := mustPull(t, s, reg.push(t, "two:1", twoLayers(t)))
			reg.Close()
			if n := len(committed(t, s)); n != 2 {
				t.Fatalf("%d layers after the pull", n)
			}
			for i, handler := range []string{"", "same", "other", "other", "unknown"} {
				r := rootfsFor(t, s, fmt.Sprintf("c%d", i), handler, im)
				want := snapshotter
				if handler == "other" {
					want = otherForm(snapshotter)
				}
				if (r.Root.Mounts != nil) != (want == erofsForm) {
					t.Errorf("handler %q: %d mounts of layers", handler, len(r.Root.Mounts))
				}
				looksLikeTwoLayers(t, at(t, r.Root))
			}
			if n := len(committed(t, s)); n != 4 {
				t.Errorf("%d layers, want 4: the second form is made once", n)
			}
			if err := s.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := len(committed(t, s)); n != 4 {
				t.Errorf("%d layers after a collection", n)
			}
			if all, err := s.Prune(t.Context(), PruneRequest{InUse: func() map[string]bool { return nil }, DryRun: true}); err != nil || len(all) != 1 || all[0].Bytes < 2*im.Size {
				t.Errorf("pruning would free %v, %v", all, err)
			}
			if r, err := s.Check(t.Context(), CheckRequest{}); err != nil || r.Damaged != 0 || r.Layers < 4 {
				t.Errorf("check: %+v, %v", r, err)
			}
		})
	}
}

func TestAnImageIsPulledInTheFormOfItsHandler(t *testing.T) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), withOther(overlayfs))
	ref := reg.push(t, "two:1", twoLayers(t))
	im, err := s.Pull(t.Context(), PullRequest{Ref: ref, Handler: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if names := committed(t, s); len(names) != 2 {
		t.Errorf("layers: %q", names)
	}
	r := rootfsFor(t, s, "c0", "other", im)
	if r.Root.Mounts == nil {
		t.Error("the layers are folders")
	}
	looksLikeTwoLayers(t, at(t, r.Root))
	looksLikeTwoLayers(t, at(t, rootfsFor(t, s, "c1", "", im).Root)) // any form will do
	if names := committed(t, s); len(names) != 2 {
		t.Errorf("layers: %q", names)
	}
	// For a handler that wants the other form the image is not as good as here.
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Handler: "same"}); err != nil {
		t.Fatal(err)
	}
	if names := committed(t, s); len(names) != 4 {
		t.Errorf("layers: %q", names)
	}
}

func TestBothFormsGoWithTheImageAndItsLastContainer(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	s := openWith(t, dir, withOther(overlayfs))
	im := mustPull(t, s, reg.push(t, "two:1", twoLayers(t)))
	root := at(t, rootfsFor(t, s, "c0", "other", im).Root)
	if err := s.Remove(t.Context(), im.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	looksLikeTwoLayers(t, root)
	if names := committed(t, s); len(names) != 2 || !strings.HasPrefix(names[0], erofsForm+"-") || !strings.HasPrefix(names[1], erofsForm+"-") {
		t.Errorf("layers with a container of the second form: %q", names)
	}
	// Also for the next life.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openWith(t, dir, withOther(overlayfs))
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names := committed(t, s); len(names) != 2 {
		t.Errorf("layers in the next life: %q", names)
	}
	if err := s.RemoveRootfs(t.Context(), "c0"); err != nil {
		t.Fatal(err)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names := committed(t, s); len(names) != 0 {
		t.Errorf("layers without image and container: %q", names)
	}
}

func TestManyContainersMakeTheSecondFormOnce(t *testing.T) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), withOther(overlayfs))
	base := layerOf(t, map[string]string{"base": "1"})
	var all []Image
	for i := range 3 {
		all = append(all, mustPull(t, s, reg.push(t, fmt.Sprintf("im%d:1", i), imageOf(t, v1.Config{}, base, layerOf(t, map[string]string{"top": fmt.Sprint(i)})))))
	}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: fmt.Sprintf("c%d", i), Handler: "other", ImageID: all[i%3].ID}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if names := committed(t, s); len(names) != 8 {
		t.Errorf("layers: %q", names)
	}
}

func TestALayerOfTheSecondFormThatIsLostIsMadeAnew(t *testing.T) {
	for name, lose := range map[string]func(folder string) error{
		"its file": func(folder string) error { return os.Remove(blobOf(folder)) },
		"its guarded file": func(folder string) error {
			return errors.Join(os.Remove(blobOf(folder)), os.WriteFile(blobOf(folder)+veritySuffix, []byte("sha256:old"), 0o400))
		},
		"all of it": func(folder string) error { return os.RemoveAll(filepath.Dir(folder)) },
	} {
		for node, form := range map[string]string{overlayfs: erofsForm, erofsForm: overlayfs} {
			if name != "all of it" && form == overlayfs {
				continue
			}
			t.Run(name+" of "+form, func(t *testing.T) {
				reg, s := newRegistry(t), openWith(t, t.TempDir(), withOther(node))
				im := mustPull(t, s, reg.push(t, "two:1", twoLayers(t)))
				rootfsFor(t, s, "c0", "other", im)
				if err := s.RemoveRootfs(t.Context(), "c0"); err != nil {
					t.Fatal(err)
				}
				folder, err := s.folderOf(scoped(t.Context()), formKey(form, im.ChainID))
				if err == nil {
					err = lose(folder)
				}
				if err != nil {
					t.Fatal(err)
				}
				looksLikeTwoLayers(t, at(t, rootfsFor(t, s, "c1", "other", im).Root))
				if size, err := blobSize(folder); err != nil || (size > 0) != (form == erofsForm) {
					t.Errorf("a file of %d bytes, %v", size, err)
				}
			})
		}
	}
}

func TestSnapshottersThatAreNotKnownAreRefused(t *testing.T) {
	c := Config{Root: "/r", Rootfs: "/f", MaxConcurrentDownloads: 1, StallTimeout: 1, Handlers: map[string]string{"kata": "devmapper"}}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), `"devmapper" of runtime handler kata`) {
		t.Errorf("got %v", err)
	}
}
