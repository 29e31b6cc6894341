// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Remove removes an image with all its references; containers made from it run on. It is idempotent. An image that is not listed, because it is
// damaged, is removed by one of its references. The space is freed in the background.
func (s *Store) Remove(ctx context.Context, ref string) error {
	idx := s.index.Load()
	im, err := idx.status(ref)
	if isNotFound(err) {
		return s.removeDamaged(ctx, idx, ref)
	} else if err != nil {
		return err
	}
	names := slices.Concat(im.RepoTags, im.RepoDigests)
	if err := s.unname(ctx, names, idx.targets); err != nil {
		return fmt.Errorf("remove image %s: %w", im.ID, err)
	}
	if err := s.releaseChain(ctx, im.chainKey()); err != nil {
		return err
	}
	s.log.Info("image is removed", "id", im.ID, "references", names)
	s.collectSoon()
	return nil
}

func (s *Store) removeDamaged(ctx context.Context, idx *index, ref string) error {
	target := digest.Digest("")
	if named, err := normalize(ref); err == nil { // else it is an ID
		target = idx.damaged[named.String()]
	}
	if target == "" {
		return nil
	}
	var names []string
	for name, of := range idx.damaged {
		if of == target {
			names = append(names, name)
		}
	}
	if err := s.unname(ctx, names, idx.damaged); err != nil {
		return fmt.Errorf("remove damaged image %s: %w", ref, err)
	}
	s.mu.Lock()
	chains := slices.Collect(maps.Keys(s.chains))
	s.mu.Unlock()
	var errs []error
	for _, key := range chains { // which of them was this one's, nobody may know any more
		errs = append(errs, s.releaseChain(ctx, key))
	}
	s.log.Info("damaged image is removed", "references", names)
	s.collectSoon()
	return errors.Join(errs...)
}

// unname takes references away from the images that they stood for when somebody looked. Those that stand for another by now stay.
func (s *Store) unname(ctx context.Context, names []string, stoodFor map[string]digest.Digest) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(scoped(ctx), tx)
		for _, name := range names {
			now, err := s.images.Get(ctx, name)
			if err == nil && now.Target.Digest == stoodFor[name] {
				err = s.images.Delete(ctx, name)
			}
			if err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.refresh(ctx)
}
