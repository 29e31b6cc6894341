// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// index is the store's content at one instant, read by every List and Status; it is never changed.
type index struct {
	byID  map[string]*Image
	byRef map[string]string // full reference → ID
	used  usage
}

type usage struct{ bytes, inodes int64 }

// refresh rebuilds the index from the metadata. Images that cannot be read are logged and left out: a pull repairs them.
func (s *Store) refresh(ctx context.Context) error {
	ctx = scoped(ctx)
	s.refill.Lock()
	defer s.refill.Unlock()
	all, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	next := &index{byID: map[string]*Image{}, byRef: map[string]string{}}
	for _, entry := range all {
		im, err := s.describe(ctx, entry.Target)
		if err != nil {
			s.log.Error("image cannot be read; pull it again", "image", entry.Name, "error", err)
			continue
		}
		if known := next.byID[im.ID]; known != nil {
			im = known
		} else {
			next.byID[im.ID] = im
			u := s.usageOf(ctx, im)
			next.used.bytes += u.bytes
			next.used.inodes += u.inodes
		}
		next.byRef[entry.Name] = im.ID
		if strings.Contains(entry.Name, "@") {
			im.RepoDigests = append(im.RepoDigests, entry.Name)
		} else {
			im.RepoTags = append(im.RepoTags, entry.Name)
		}
	}
	s.index.Store(next)
	return nil
}

// usageOf is what an image takes on disk: its blobs, and its unpacked layers as they were counted when they were unpacked.
// Layers that images share count for each of them.
func (s *Store) usageOf(ctx context.Context, im *Image) usage {
	if u, ok := s.sizes[im.ID]; ok {
		return u
	}
	u := usage{bytes: im.Size}
	for name := im.ChainID; name != ""; {
		info, err := s.snapshots.Stat(ctx, name)
		if err != nil {
			return u // not unpacked (any more); counted again when it is
		}
		layer, err := s.snapshots.Usage(ctx, name)
		if err != nil {
			s.log.Warn("usage of layer", "layer", name, "error", err)
			return u
		}
		u.bytes, u.inodes, name = u.bytes+layer.Size, u.inodes+layer.Inodes, info.Parent
	}
	s.sizes[im.ID] = u
	return u
}

// describe reads manifest and configuration of an image that is in the content store.
func (s *Store) describe(ctx context.Context, target ocispec.Descriptor) (*Image, error) {
	manifest, err := images.Manifest(ctx, s.content, target, s.platform)
	if err != nil {
		return nil, err
	}
	raw, err := content.ReadBlob(ctx, s.content, manifest.Config)
	if err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("configuration %s: %w: %w", manifest.Config.Digest, ErrCorrupt, err)
	}
	im := &Image{ID: manifest.Config.Digest.String(), Size: target.Size + manifest.Config.Size, Layers: len(manifest.Layers),
		User: config.Config.User, Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd, Env: config.Config.Env,
		WorkingDir: config.Config.WorkingDir, StopSignal: config.Config.StopSignal, Labels: config.Config.Labels,
		Volumes: slices.Sorted(maps.Keys(config.Config.Volumes))}
	for _, l := range manifest.Layers {
		im.Size += l.Size
	}
	if p := config.Platform; p.OS != "" && p.Architecture != "" && !s.platform.Match(platforms.Normalize(p)) {
		return nil, fmt.Errorf("image is made for %s, this node is %s: %w", platforms.Format(p), platforms.DefaultString(), ErrUnsupported)
	}
	if config.Created != nil {
		im.Created = *config.Created
	}
	if len(config.RootFS.DiffIDs) > 0 {
		im.ChainID = identity.ChainID(config.RootFS.DiffIDs).String()
	}
	im.UID, im.Username, err = parseUser(config.Config.User)
	return im, err
}

// parseUser splits an image's user. All digits are a number and never a name: a number out of range is an
// error, or an image could slip past runAsNonRoot (CVE-2026-46680, CVE-2024-40635).
func parseUser(user string) (*int64, string, error) {
	name, _, _ := strings.Cut(user, ":")
	if name == "" {
		return nil, "", nil
	}
	if strings.Trim(name, "0123456789") != "" {
		return nil, name, nil
	}
	n, err := strconv.ParseInt(name, 10, 32)
	if err != nil {
		return nil, "", fmt.Errorf("user %q of the image is out of range: %w", name, ErrUnsupported)
	}
	return &n, "", nil
}

// List lists all images.
func (s *Store) List() []Image {
	idx := s.index.Load()
	all := make([]Image, 0, len(idx.byID))
	for _, id := range slices.Sorted(maps.Keys(idx.byID)) {
		all = append(all, *idx.byID[id])
	}
	return all
}

// Status finds an image by tag, digest reference, or ID (whole, or an unambiguous beginning). Errors: ErrNotFound, ErrInvalidReference.
func (s *Store) Status(ref string) (Image, error) {
	idx := s.index.Load()
	if im := idx.byID[ref]; im != nil {
		return *im, nil
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if isHex(hex) {
		var found *Image
		for id, im := range idx.byID {
			if strings.HasPrefix(id, "sha256:"+hex) {
				if found != nil {
					return Image{}, fmt.Errorf("image %q: more than one ID begins so: %w", ref, ErrInvalidReference)
				}
				found = im
			}
		}
		if found != nil {
			return *found, nil
		}
		if ref != hex {
			return Image{}, fmt.Errorf("image %q: %w", ref, ErrNotFound)
		}
	}
	name, err := normalize(ref)
	if err != nil {
		return Image{}, err
	}
	for _, n := range []string{name.String(), digestOnly(name)} {
		if id, ok := idx.byRef[n]; ok {
			return *idx.byID[id], nil
		}
	}
	return Image{}, fmt.Errorf("image %q: %w", ref, ErrNotFound)
}

func isHex(s string) bool {
	return len(s) > 0 && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// maxReference bounds a reference; the longest that registries take is far below.
const maxReference = 4096

// normalize completes a reference as docker does: "busybox" is "docker.io/library/busybox:latest".
func normalize(ref string) (reference.Named, error) {
	if len(ref) > maxReference {
		return nil, fmt.Errorf("image reference of %d characters: %w", len(ref), ErrInvalidReference)
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", ref, ErrInvalidReference, err)
	}
	return named, nil
}

// digestOnly is the reference by digest alone; empty without one.
func digestOnly(name reference.Named) string {
	if d, ok := name.(reference.Digested); ok {
		return reference.TrimNamed(name).String() + "@" + d.Digest().String()
	}
	return ""
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
	return map[string]any{"chainID": im.ChainID, "imageSpec": json.RawMessage(raw)}, nil
}

// Remove removes an image with all its references; containers made from it run on. It is idempotent. The space is
// freed in the background.
func (s *Store) Remove(ctx context.Context, ref string) error {
	im, err := s.Status(ref)
	if isNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	for _, name := range slices.Concat(im.RepoTags, im.RepoDigests) {
		if err := s.images.Delete(scoped(ctx), name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", name, err)
		}
	}
	if err := s.refresh(ctx); err != nil {
		return err
	}
	if err := s.releaseChain(ctx, im.ChainID); err != nil {
		return err
	}
	s.collectSoon()
	return nil
}
