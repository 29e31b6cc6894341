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
