// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestWhatAKilledImportHasLeftGoesWithTheNextStart: an import is not taken up again, so nothing is kept for it.
func TestWhatAKilledImportHasLeftGoesWithTheNextStart(t *testing.T) {
	dir, reg := t.TempDir(), newRegistry(t)
	s := openStore(t, dir)
	im := mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"}))))
	ctx := scoped(t.Context())
	lease, err := s.leases.Create(ctx, leases.WithID(importPrefix+"killed"), leases.WithExpiration(pullTime))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []leases.Resource{{Type: "snapshots/" + overlayfs, ID: im.ChainID}, {Type: "content", ID: im.ID}} {
		if err := s.leases.AddResource(ctx, lease, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Remove(t.Context(), im.ID), s.Close()); err != nil {
		t.Fatal(err)
	}
	assertOnly(t, openStore(t, dir), dir)
}

// TestAStartThatFailsAfterARebootIsFollowedByOneThatKnowsOfIt: what the reboot has made doubtful is gone before the boot is noted.
func TestAStartThatFailsAfterARebootIsFollowedByOneThatKnowsOfIt(t *testing.T) {
	dir, reg := t.TempDir(), newRegistry(t)
	s := openStore(t, dir)
	im := mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"}))))
	ctx := scoped(t.Context())
	lease, err := s.leases.Create(ctx, leases.WithID(pullPrefix+"cut-off"), leases.WithExpiration(pullTime))
	if err == nil {
		err = s.leases.AddResource(ctx, lease, leases.Resource{Type: "snapshots/" + overlayfs, ID: im.ChainID})
	}
	if err = errors.Join(err, s.Remove(t.Context(), im.ID), s.Close()); err != nil {
		t.Fatal(err)
	}
	reboot(t, dir)
	stuck := filepath.Join(dir, "image", contentDir, "ingest", "stuck")
	if err := errors.Join(os.MkdirAll(stuck, 0o700), syscall.Mount("stuck", stuck, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(t.Context(), childConfig(dir), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("the first start does not fail", s.Close())
	}
	if err := syscall.Unmount(stuck, 0); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir).walkSnapshots(t, func(name string) {
		if strings.HasPrefix(name, "sha256:") {
			t.Errorf("layer %s is trusted, and nobody knows whether its files are on disk", name)
		}
	})
}

// refusing is a lease manager that deletes nothing for a while, as on a full disk.
type refusing struct {
	leases.Manager
	left int
}

func (r *refusing) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	if r.left--; r.left >= 0 {
		return errors.New("no space for the transaction")
	}
	return r.Manager.Delete(ctx, l, opts...)
}

// TestALeaseThatCannotBeDeletedIsDeletedLater: what it holds would stay for a day.
func TestALeaseThatCannotBeDeletedIsDeletedLater(t *testing.T) {
	dir, reg := t.TempDir(), newRegistry(t)
	s := openStore(t, dir)
	s.leases = &refusing{s.leases, 1}
	im := mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"}))))
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	assertOnly(t, s, dir, im)
}

// TestContainersOfARecordThatCannotBeReadKeepTheirLayers, whichever these are.
func TestContainersOfARecordThatCannotBeReadKeepTheirLayers(t *testing.T) {
	dir, reg := t.TempDir(), newRegistry(t)
	s := openStore(t, dir)
	im := mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"}))))
	if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: im.ID}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Remove(t.Context(), im.ID), s.Close(), os.WriteFile(filepath.Join(dir, "rootfs/c/image"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := false
	s.walkSnapshots(t, func(name string) { found = found || name == im.ChainID })
	if !found {
		t.Error("the layers are gone")
	}
	if err := errors.Join(s.RemoveRootfs(t.Context(), "c"), s.Close()); err != nil {
		t.Fatal(err)
	}
	assertOnly(t, openStore(t, dir), dir)
}

// TestRemovingAnImageLeavesANameThatAnotherHasByNow: the list that was looked at may be old.
func TestRemovingAnImageLeavesANameThatAnotherHasByNow(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "old"})))
	old := mustPull(t, s, ref)
	before := s.index.Load()
	reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "new"})))
	fresh := mustPull(t, s, ref)
	s.index.Store(before)
	if err := s.Remove(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Status(ref); err != nil || got.ID != fresh.ID {
		t.Errorf("%s is %q, %v", ref, got.ID, err)
	}
	if _, err := s.Status(old.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the old one: %v", err)
	}
}

// TestTaggingAnImageWhoseNameHasMoved tags the image that was meant, or none.
func TestTaggingAnImageWhoseNameHasMoved(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "old"})))
	old := mustPull(t, s, ref)
	before := *s.index.Load()
	before.byID = map[string]*Image{old.ID: {ID: old.ID, RepoTags: []string{ref}}} // as of an import, which has no name with a digest
	reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "new"})))
	mustPull(t, s, ref)
	s.index.Store(&before)
	if im, _, err := s.Tag(t.Context(), old.ID, "example.com/y:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("tagged %s, meant %s: %v", im.ID, old.ID, fmt.Sprint(err))
	}
}
