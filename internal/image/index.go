// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// index is the store's content at one instant, read by every List and Status; it is never changed.
type index struct {
	byID    map[string]*Image
	byRef   map[string]string        // full reference → ID
	targets map[string]digest.Digest // full reference → what it stands for in the registry
	// damaged are the references of images that cannot be read, or have lost layers, and so are in none of the others.
	damaged map[string]digest.Digest
	all     []Image // by ID
}

// refresh rebuilds the index from the metadata. Images that cannot be read are logged and left out: a pull repairs them.
func (s *Store) refresh(ctx context.Context) error {
	ctx = scoped(ctx)
	s.refill.Lock()
	defer s.refill.Unlock()
	entries, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	next := &index{byID: map[string]*Image{}, byRef: map[string]string{}, targets: map[string]digest.Digest{}, damaged: map[string]digest.Digest{}}
	described := map[digest.Digest]*Image{}
	for _, entry := range entries {
		target := entry.Target.Digest
		plain := s.described[target]
		if plain == nil {
			if plain, err = s.describe(ctx, entry.Target); err != nil {
				s.log.Error("image cannot be read; pull it again", "image", entry.Name, "error", err)
				next.damaged[entry.Name] = target
				continue
			}
		}
		described[target] = plain
		im := next.byID[plain.ID]
		if im == nil {
			copied := *plain
			im = &copied
			next.byID[im.ID] = im
		}
		next.byRef[entry.Name], next.targets[entry.Name] = im.ID, target
		im.Pinned = im.Pinned || s.cfg.pins(entry.Name)
		im.addName(entry.Name)
	}
	s.described = described
	for _, id := range slices.Sorted(maps.Keys(next.byID)) {
		next.all = append(next.all, *next.byID[id])
	}
	s.index.Store(next)
	return nil
}

// addName adds a full reference.
func (im *Image) addName(ref string) {
	if strings.Contains(ref, "@") {
		im.RepoDigests = append(im.RepoDigests, ref)
	} else {
		im.RepoTags = append(im.RepoTags, ref)
	}
}

// pins says whether a reference is one of those that the kubelet must not collect. A pattern is a whole reference, or one with a * at its
// end, or in between as in path.Match.
func (c Config) pins(ref string) bool {
	return slices.ContainsFunc(c.Pinned, func(pattern string) bool {
		if before, ok := strings.CutSuffix(pattern, "*"); ok && !strings.Contains(before, "*") {
			return strings.HasPrefix(ref, before)
		}
		ok, err := path.Match(pattern, ref)
		return ok && err == nil // Validate has seen bad patterns
	})
}

// describe reads manifest and configuration of an image that is in the content store.
func (s *Store) describe(ctx context.Context, target ocispec.Descriptor) (*Image, error) {
	t, config, err := s.readTree(ctx, target)
	if err != nil {
		return nil, err
	}
	im := &Image{ID: t.id().String(), Artifact: t.artifact, Size: t.manifest.Size + t.config.Size, Layers: len(t.layers), ChainID: t.top(),
		User: config.Config.User, Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd, Env: config.Config.Env,
		WorkingDir: config.Config.WorkingDir, StopSignal: config.Config.StopSignal, Labels: config.Config.Labels,
		Volumes: slices.Sorted(maps.Keys(config.Config.Volumes))}
	for _, l := range slices.Concat(t.layers, t.unnamed) {
		im.Size += l.Size
	}
	if config.Created != nil {
		im.Created = *config.Created
	}
	r, err := s.placeOf(ctx, t)
	if err != nil {
		return nil, err
	}
	if r != nil {
		im.Snapshotter = r.Name
	} else if err := s.complete(ctx, t); err != nil {
		return nil, err
	}
	im.UID, im.Username, err = parseUser(config.Config.User)
	return im, err
}

// complete tells whether the store has all of an image's layers.
func (s *Store) complete(ctx context.Context, t *tree) error {
	if t.top() != "" {
		if _, err := s.snapshots.Stat(ctx, t.top()); err != nil {
			return fmt.Errorf("unpacked layers: %w", err)
		}
	}
	for _, c := range t.chain {
		if err := s.whole(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// parseUser splits an image's user. All digits are a number and never a name: a number out of range is an
// error, or an image could slip past runAsNonRoot (CVE-2026-46680, CVE-2024-40635). So are signs, which some parsers take.
func parseUser(user string) (*int64, string, error) {
	name, _, _ := strings.Cut(user, ":")
	digits := strings.TrimLeft(name, "+-")
	if name == "" || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return nil, name, nil
	}
	n, err := strconv.ParseInt(name, 10, 32)
	if err != nil || digits != name {
		return nil, "", fmt.Errorf("user %q of the image is out of range: %w", name, ErrUnsupported)
	}
	return &n, "", nil
}

// List lists all images. Their slices are shared: do not change them.
func (s *Store) List() []Image { return slices.Clone(s.index.Load().all) }

// minPrefix keeps the beginnings of IDs and short names apart.
const minPrefix = 8

// Status finds an image by tag, digest reference, or ID (whole, or an unambiguous beginning of at least 8 digits). Names come before
// beginnings of IDs, or an image called "deadbeef" could be mistaken for another. Errors: ErrNotFound, ErrInvalidReference.
func (s *Store) Status(ref string) (Image, error) { return s.index.Load().status(ref) }

func (idx *index) status(ref string) (Image, error) {
	hex, tagged := strings.CutPrefix(ref, "sha256:")
	if im := idx.byID["sha256:"+hex]; im != nil {
		return *im, nil
	}
	if !tagged && len(hex) != 64 { // 64 digits are no name, as docker has it
		name, err := normalize(ref)
		if err != nil {
			return Image{}, err
		}
		if id, ok := idx.byRef[name.String()]; ok {
			return *idx.byID[id], nil
		}
	}
	if len(hex) < minPrefix || len(hex) > 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return Image{}, fmt.Errorf("image %q: %w", ref, ErrNotFound)
	}
	var found *Image
	for id, im := range idx.byID {
		if strings.HasPrefix(id, "sha256:"+hex) {
			if found != nil {
				return Image{}, fmt.Errorf("image %q: more than one ID begins so: %w", ref, ErrInvalidReference)
			}
			found = im
		}
	}
	if found == nil {
		return Image{}, fmt.Errorf("image %q: %w", ref, ErrNotFound)
	}
	return *found, nil
}

// maxReference bounds a reference; the longest that registries take is far below.
const maxReference = 4096

// normalize completes a reference as docker does: "busybox" is "docker.io/library/busybox:latest". Of a tag and a digest the digest counts.
func normalize(ref string) (reference.Named, error) {
	if len(ref) > maxReference {
		return nil, fmt.Errorf("image reference of %d characters: %w", len(ref), ErrInvalidReference)
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", withoutUser(ref), ErrInvalidReference, err)
	}
	return named, nil
}

// withoutUser takes out what may be a password in something that is no reference: user:password@host/name.
func withoutUser(ref string) string {
	before, after, ok := strings.Cut(ref, "@")
	if host, _, _ := strings.Cut(after, "/"); ok && !strings.Contains(strings.TrimPrefix(before, "https://"), "/") && !strings.HasPrefix(host, "sha") {
		return "…@" + after
	}
	return ref
}

// Info tells details for ImageStatus with verbose.
func (s *Store) Info(ctx context.Context, ref string) (map[string]any, error) {
	im, err := s.Status(ref)
	if err != nil {
		return nil, err
	}
	raw, err := content.ReadBlob(scoped(ctx), s.content, ocispec.Descriptor{Digest: digest.Digest(im.ID)})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", im.ID, err)
	}
	if im.Artifact != "" {
		return map[string]any{"chainID": im.ChainID, "artifactType": im.Artifact, "manifest": json.RawMessage(raw)}, nil
	}
	return map[string]any{"chainID": im.ChainID, "imageSpec": json.RawMessage(raw)}, nil
}
