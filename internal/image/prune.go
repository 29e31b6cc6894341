// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pruned is an image that Prune has removed, or would.
type Pruned struct {
	Image
	// Bytes are what it alone takes of the disk. What several pruned images share counts for the first.
	Bytes int64
}

// PruneRequest says what may go.
type PruneRequest struct {
	// InUse lists the IDs of images that containers have. It is asked once for each image, so that one that a container has got meanwhile stays.
	InUse func() map[string]bool
	// DryRun only tells.
	DryRun bool
}

// Prune removes the images that are neither in use nor pinned. It goes on after an error, and returns all of them. Space is freed in the background.
func (s *Store) Prune(ctx context.Context, r PruneRequest) ([]Pruned, error) {
	all, used := s.List(), r.InUse()
	var out []Pruned
	var errs []error
	kept := map[digest.Digest]bool{}
	for _, im := range all {
		if im.Pinned || used[im.ID] {
			if err := s.parts(ctx, im, func(id digest.Digest, _ int64) { kept[id] = true }); err != nil {
				return nil, fmt.Errorf("prune images: %w", err)
			}
		}
	}
	for _, im := range all {
		if im.Pinned || used[im.ID] {
			continue
		}
		p := Pruned{Image: im}
		err := s.parts(ctx, im, func(id digest.Digest, bytes int64) {
			if !kept[id] {
				kept[id] = true
				p.Bytes += bytes
			}
		})
		if err == nil && !r.DryRun {
			if r.InUse()[im.ID] {
				continue
			}
			err = s.Remove(ctx, im.ID)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("prune image %s: %w", im.ID, err))
			continue
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// parts calls f with all that an image takes of the disk: layers by chain ID, and blobs.
func (s *Store) parts(ctx context.Context, im Image, f func(id digest.Digest, bytes int64)) error {
	ctx = scoped(ctx)
	for _, target := range s.targetsOf(im) {
		target, err := s.content.Info(ctx, target)
		if errdefs.IsNotFound(err) {
			continue // removed meanwhile
		} else if err != nil {
			return err
		}
		t, _, err := s.readTree(ctx, ocispec.Descriptor{Digest: target.Digest, Size: target.Size})
		if err != nil {
			return err
		}
		s.counting.Lock()
		sizes := s.sizes
		if r := s.remotes[im.Snapshotter]; r != nil {
			sizes = r.sizes
		}
		s.counting.Unlock()
		for _, c := range t.chain {
			f(c, sizes[c.String()].bytes)
			for _, form := range []string{erofsForm, overlayfs} {
				if u, here := sizes[formKey(form, c.String())]; here {
					f(digest.Digest(formKey(form, c.String())), u.bytes)
				}
			}
		}
		blobs := append(t.indexes, t.manifest.Digest, t.config.Digest)
		for _, l := range slices.Concat(t.layers, t.unnamed) {
			blobs = append(blobs, l.Digest)
		}
		for _, b := range blobs {
			info, err := s.content.Info(ctx, b)
			if err == nil {
				f(b, info.Size)
			} else if !errdefs.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
}

// targetsOf are the manifests and indexes that an image's names stand for.
func (s *Store) targetsOf(im Image) []digest.Digest {
	idx := s.index.Load()
	seen := map[digest.Digest]bool{}
	var all []digest.Digest
	for _, names := range [][]string{im.RepoDigests, im.RepoTags} {
		for _, name := range names {
			if at, ok := idx.targets[name]; ok && !seen[at] {
				seen[at] = true
				all = append(all, at)
			}
		}
	}
	return all
}
