// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// Tag gives an image, by name or ID, one more name, and returns that in full. A name that another image has is taken from that one. It is
// idempotent. Errors: ErrNotFound, ErrInvalidReference, ErrRefused: the signature policy has the name for pulls only.
func (s *Store) Tag(ctx context.Context, ref, name string) (Image, string, error) {
	named, err := normalize(name)
	if err != nil {
		return Image{}, "", err
	}
	if _, ok := named.(reference.Tagged); !ok {
		return Image{}, "", fmt.Errorf("image name %q: a digest is no name that can be given: %w", name, ErrInvalidReference)
	}
	idx := s.index.Load()
	im, err := idx.status(ref)
	if err != nil {
		return Image{}, "", err
	}
	if !slices.Contains(im.RepoTags, named.String()) {
		if err := s.guard.given(named, false); err != nil {
			return Image{}, "", fmt.Errorf("tag image %s as %s: %w", ref, named, err)
		}
	}
	ctx = scoped(ctx)
	err = s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		// Inside the transaction: the image may have been removed meanwhile, and its names may be another's.
		for _, old := range slices.Concat(im.RepoDigests, im.RepoTags) {
			from, err := s.images.Get(ctx, old)
			if errdefs.IsNotFound(err) || err == nil && from.Target.Digest != idx.targets[old] {
				continue
			} else if err != nil {
				return err
			}
			return s.name(ctx, named.String(), from.Target)
		}
		return fmt.Errorf("image %q: %w", ref, ErrNotFound)
	})
	if err != nil {
		return Image{}, "", fmt.Errorf("tag image %s as %s: %w", ref, named, err)
	}
	if err := s.refresh(ctx); err != nil {
		return Image{}, "", err
	}
	s.log.Info("image is tagged", "id", im.ID, "name", named.String())
	s.collectSoon() // what had the name before may have had no other
	im, err = s.Status(named.String())
	return im, named.String(), err
}

// Untag takes a name from its image. It returns the image with the tags that it still has, and the name in full. With its last tag the image is removed as by Remove.
// A repository's digest goes with the last tag of the repository. Errors: ErrNotFound, ErrInvalidReference: a digest or an ID is not one name of several.
func (s *Store) Untag(ctx context.Context, name string) (Image, string, error) {
	named, err := normalize(name)
	if err != nil {
		return Image{}, "", err
	}
	full := named.String()
	idx := s.index.Load()
	im, err := idx.status(full)
	if err != nil {
		return Image{}, "", err
	}
	if !slices.Contains(im.RepoTags, full) {
		return Image{}, "", fmt.Errorf("image name %q: is no tag that could be taken away: %w", name, ErrInvalidReference)
	}
	left := slices.DeleteFunc(slices.Clone(im.RepoTags), func(tag string) bool { return tag == full })
	if len(left) == 0 {
		im.RepoTags = nil
		return im, full, s.Remove(ctx, full)
	}
	gone := []string{full}
	if !slices.ContainsFunc(left, func(tag string) bool { return repository(tag) == named.Name() }) {
		for _, d := range im.RepoDigests {
			if repository(d) == named.Name() {
				gone = append(gone, d)
			}
		}
	}
	if err := s.unname(ctx, gone, idx.targets); err != nil {
		return Image{}, "", fmt.Errorf("take the name %s from image %s: %w", full, im.ID, err)
	}
	s.log.Info("image has lost a name", "id", im.ID, "name", full, "left", left)
	im.RepoTags = left
	return im, full, nil
}

// repository is a reference in full without its tag or digest.
func repository(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return named.Name()
}

// name has a reference stand for an image, whatever it stood for. Preconditions: ctx has a transaction.
func (s *Store) name(ctx context.Context, ref string, target ocispec.Descriptor) error {
	im := images.Image{Name: ref, Target: target}
	_, err := s.images.Create(ctx, im)
	if errdefs.IsAlreadyExists(err) {
		_, err = s.images.Update(ctx, im, "target")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	return nil
}
