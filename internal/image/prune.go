// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	damaged, err := s.pruneDamaged(ctx, r, kept)
	return append(out, damaged...), errors.Join(append(errs, err)...)
}

// pruneDamaged removes images that are not listed: nobody else would, and containers that run on what is left of one keep that.
func (s *Store) pruneDamaged(ctx context.Context, r PruneRequest, kept map[digest.Digest]bool) (out []Pruned, _ error) {
	byTarget := map[digest.Digest]*Pruned{}
	pinned := map[digest.Digest]bool{}
	damaged := s.index.Load().damaged
	for _, name := range slices.Sorted(maps.Keys(damaged)) {
		target := damaged[name]
		p := byTarget[target]
		if p == nil {
			p = &Pruned{}
			byTarget[target] = p
		}
		pinned[target] = pinned[target] || s.cfg.pins(name)
		p.addName(name)
	}
	var errs []error
	for _, target := range slices.Sorted(maps.Keys(byTarget)) {
		p := byTarget[target]
		t, readable := s.readDamaged(ctx, target)
		if readable {
			p.ID = t.id().String()
		}
		if pinned[target] || r.InUse()[p.ID] {
			continue
		}
		var err error
		if readable {
			err = s.partsOf(scoped(ctx), t, s.sizesOf(""), func(id digest.Digest, bytes int64) {
				if !kept[id] {
					kept[id] = true
					p.Bytes += bytes
				}
			})
		}
		if err == nil && !r.DryRun {
			err = s.Remove(ctx, slices.Concat(p.RepoTags, p.RepoDigests)[0])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("prune damaged image %s: %w", target, err))
			continue
		}
		out = append(out, *p)
	}
	return out, errors.Join(errs...)
}

// readDamaged tells what a damaged image is made of, if that can be read.
func (s *Store) readDamaged(ctx context.Context, target digest.Digest) (*tree, bool) {
	info, err := s.content.Info(scoped(ctx), target)
	if err != nil {
		return nil, false
	}
	t, _, err := s.readTree(scoped(ctx), ocispec.Descriptor{Digest: target, Size: info.Size})
	return t, err == nil
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
		if err := s.partsOf(ctx, t, s.sizesOf(im.Snapshotter), f); err != nil {
			return err
		}
	}
	return nil
}

// sizesOf are the layers of a snapshotter, as they were counted last.
func (s *Store) sizesOf(snapshotter string) map[string]usage {
	s.counting.Lock()
	defer s.counting.Unlock()
	if r := s.remotes[snapshotter]; r != nil {
		return r.sizes
	}
	return s.sizes
}

func (s *Store) partsOf(ctx context.Context, t *tree, sizes map[string]usage, f func(id digest.Digest, bytes int64)) error {
	for _, c := range t.chain {
		f(c, sizes[c.String()].bytes)
		for _, form := range []string{erofsForm, overlayfs} {
			if u, here := sizes[formKey(form, c.String())]; here {
				f(digest.Digest(formKey(form, c.String())), u.bytes)
			}
		}
	}
	blobs := append(slices.Clone(t.indexes), t.manifest.Digest, t.config.Digest)
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
