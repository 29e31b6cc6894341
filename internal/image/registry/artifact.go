// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tagged reads the manifest that another tag of the repository stands for; nil if there is none.
func (s *Session) Tagged(ctx context.Context, tag string) ([]byte, error) {
	name, err := reference.WithTag(reference.TrimNamed(s.name), tag)
	if err != nil {
		return nil, fmt.Errorf("tag %q: %w", tag, err)
	}
	seen := &notes{}
	_, desc, err := s.resolver.Resolve(context.WithValue(ctx, notesKey{}, seen), name.String())
	if err != nil {
		if err = seen.sum(ctx, err); errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		return nil, fmt.Errorf("tag %s: %w", tag, err)
	}
	return s.Read(ctx, desc)
}

// Referrers lists the artifacts of some types that are about a manifest. A registry without such a list has none.
func (s *Session) Referrers(ctx context.Context, about digest.Digest, types ...string) ([]ocispec.Descriptor, error) {
	seen := &notes{}
	ctx = context.WithValue(ctx, notesKey{}, seen)
	f, err := s.resolver.Fetcher(ctx, s.name.String())
	if err != nil {
		return nil, seen.sum(ctx, err)
	}
	list, ok := f.(remotes.ReferrersFetcher)
	if !ok {
		return nil, fmt.Errorf("referrers of %s: %T cannot list them", about, f)
	}
	all, err := list.FetchReferrers(ctx, about, remotes.WithReferrerArtifactTypes(types...))
	if err != nil {
		if err = seen.sum(ctx, err); errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		return nil, fmt.Errorf("referrers of %s: %w", about, err)
	}
	return all, nil
}

// Read reads a manifest or a small blob, and checks its size and digest.
func (s *Session) Read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil || !desc.Digest.Algorithm().Available() {
		return nil, fmt.Errorf("digest %q is not valid: %w", desc.Digest, ErrUnavailable)
	}
	if desc.Size > MaxDocument {
		return nil, fmt.Errorf("%s has %d bytes: %w", desc.Digest, desc.Size, ErrTooLarge)
	}
	r, err := s.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, MaxDocument))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	if int64(len(raw)) != desc.Size || desc.Digest.Algorithm().FromBytes(raw) != desc.Digest {
		return nil, fmt.Errorf("%s is not what was promised: %w", desc.Digest, ErrUnavailable)
	}
	return raw, nil
}
