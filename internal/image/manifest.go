// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxDepth = 4 // indexes in indexes
	// maxLayers is what fits into the options of one mount, see links.
	maxLayers = 160
	// maxImage is more bytes than any image has; what JSON's numbers hold exactly.
	maxImage = 1 << 53
	// maxManifests bounds an index.
	maxManifests = 4096
)

// tree is what an image is made of, from the root that its name stands for down to its layers.
type tree struct {
	root     ocispec.Descriptor
	indexes  []digest.Digest
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	layers   []ocispec.Descriptor
	chain    []digest.Digest // of each layer with all below it
	diffIDs  []digest.Digest
	// artifact is the type of an OCI artifact; empty for container images. Its layers are files with these names; unnamed ones are none.
	artifact string
	names    []string
	// snapshotter has the layers; empty: the store.
	snapshotter string
	unnamed     []ocispec.Descriptor
}

// id is what the image is known by: the digest of its configuration. Artifacts share theirs, which is empty most often, so it is the manifest's.
func (t *tree) id() digest.Digest {
	if t.artifact != "" {
		return t.manifest.Digest
	}
	return t.config.Digest
}

// top names the unpacked image; empty without layers.
func (t *tree) top() string {
	if len(t.chain) == 0 {
		return ""
	}
	return t.chain[len(t.chain)-1].String()
}

// contentRef begins the labels by which the collector finds blobs.
const contentRef = "containerd.io/gc.ref."

type blobLabel struct {
	blob       digest.Digest
	key, value string
}

// labels are the references by which the collector finds what belongs to the image. Compressed layers are not among them unless they are to be
// kept: they would double what an image takes.
func (t *tree) labels(keepLayers bool) []blobLabel {
	const ref = contentRef
	var all []blobLabel
	path := append(slices.Clone(t.indexes), t.manifest.Digest)
	for i, d := range path[:len(path)-1] {
		all = append(all, blobLabel{d, ref + "content.m.0", path[i+1].String()})
	}
	all = append(all, blobLabel{t.manifest.Digest, ref + "content.config", t.config.Digest.String()})
	if t.top() != "" {
		all = append(all, blobLabel{t.id(), gcRefPrefix + cmp.Or(t.snapshotter, overlayfs), t.top()})
	}
	if keepLayers {
		for i, l := range slices.Concat(t.layers, t.unnamed) {
			all = append(all, blobLabel{t.manifest.Digest, fmt.Sprintf("%scontent.l.%d", ref, i), l.Digest.String()})
		}
	}
	return all
}

// keepsLayers tells whether an image that is here was recorded with its compressed layers.
func (s *Store) keepsLayers(ctx context.Context, t *tree) (bool, error) {
	info, err := s.content.Info(ctx, t.manifest.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil // removed meanwhile
	}
	return info.Labels[fmt.Sprintf("%scontent.l.%d", contentRef, 0)] != "", err
}

// document is an index or a manifest, or something that claims to be both.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Config        ocispec.Descriptor   `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
}

// fetchTree fetches manifests and configuration and checks what they say before any layer is asked for.
func (p *puller) fetchTree(ctx context.Context, root ocispec.Descriptor) (*tree, error) {
	return p.s.walk(root, func(what string, desc ocispec.Descriptor) ([]byte, error) { return p.document(ctx, what, desc) })
}

// readTree reads the same from what is here.
func (s *Store) readTree(ctx context.Context, root ocispec.Descriptor) (*tree, ocispec.Image, error) {
	var config ocispec.Image
	t, err := s.walk(root, func(_ string, desc ocispec.Descriptor) ([]byte, error) {
		raw, err := s.readDocument(ctx, desc)
		if err == nil && images.IsConfigType(desc.MediaType) {
			err = json.Unmarshal(raw, &config)
		}
		return raw, err
	})
	return t, config, err
}

func (s *Store) walk(root ocispec.Descriptor, read func(what string, desc ocispec.Descriptor) ([]byte, error)) (*tree, error) {
	t := &tree{root: root}
	var doc document
	desc := root
	for depth := 0; ; depth++ {
		if depth > maxDepth {
			return nil, fmt.Errorf("index %s: more than %d indexes in one another: %w", root.Digest, maxDepth, ErrUnsupported)
		}
		raw, err := read("manifest", desc)
		if err != nil {
			return nil, err
		}
		if doc, err = parseDocument(desc, raw); err != nil {
			return nil, err
		}
		if len(doc.Manifests) == 0 && doc.Config.Digest != "" {
			t.manifest, t.config, t.layers = desc, doc.Config, doc.Layers
			break
		}
		t.indexes = append(t.indexes, desc.Digest)
		if desc, err = s.choose(desc.Digest, doc.Manifests); err != nil {
			return nil, err
		}
	}
	artifact := doc.artifactType()
	check := func() error { return checkManifest(t) }
	if artifact != "" || t.config.MediaType == "" {
		check = func() error { return t.files(artifact, doc.Layers) }
	}
	err := check()
	if err == nil {
		err = t.checkSizes()
	}
	if err != nil {
		return nil, err
	}
	raw, err := read("configuration", t.config)
	if err != nil || t.artifact != "" {
		return t, err
	}
	return t, s.checkConfig(t, raw)
}

// parseDocument tells by the content what it is: media types of registries are wrong at times, and a document that can be read in two
// ways shows different images to different readers (CVE-2021-41190).
func parseDocument(desc ocispec.Descriptor, raw []byte) (document, error) {
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return doc, fmt.Errorf("manifest %s: %w: %w", desc.Digest, ErrCorrupt, err)
	}
	isIndex, isManifest := len(doc.Manifests) > 0, doc.Config.Digest != "" || len(doc.Layers) > 0
	switch {
	case doc.SchemaVersion == 1 || len(doc.FSLayers) > 0:
		return doc, fmt.Errorf("manifest %s is of Docker's schema 1, which was retired in 2019: push the image again: %w", desc.Digest, ErrUnsupported)
	case isIndex && isManifest, isIndex && images.IsManifestType(desc.MediaType), isManifest && images.IsIndexType(desc.MediaType),
		doc.MediaType != "" && (images.IsIndexType(doc.MediaType) && isManifest || images.IsManifestType(doc.MediaType) && isIndex):
		return doc, fmt.Errorf("manifest %s: is index and manifest at once: %w", desc.Digest, ErrCorrupt)
	case isIndex && len(doc.Manifests) > maxManifests:
		return doc, fmt.Errorf("index %s: %d manifests, more than %d: %w", desc.Digest, len(doc.Manifests), maxManifests, ErrUnsupported)
	case !isIndex && doc.Config.Digest == "":
		return doc, fmt.Errorf("manifest %s: %q is no image: %w", desc.Digest, desc.MediaType, ErrUnsupported)
	}
	return doc, nil
}

// choose picks this node's manifest out of an index. Entries without a platform are the last resort, artifacts among them where nothing is for a
// platform: beside images they are about those.
func (s *Store) choose(index digest.Digest, all []ocispec.Descriptor) (ocispec.Descriptor, error) {
	var best, any, artifact *ocispec.Descriptor
	var offered []string
	for i := range all {
		d := &all[i]
		switch {
		case d.Platform == nil:
			if any == nil && d.ArtifactType == "" {
				any = d
			} else if artifact == nil {
				artifact = d
			}
		case !s.platform.Match(*d.Platform):
			offered = append(offered, platforms.Format(*d.Platform))
		case best == nil || s.platform.Less(*d.Platform, *best.Platform):
			best = d
		}
	}
	if best == nil {
		best = any
	}
	if best == nil && len(offered) == 0 {
		best = artifact
	}
	if best == nil {
		slices.Sort(offered)
		if offered = slices.Compact(offered); len(offered) > 8 {
			offered = append(offered[:8], "…")
		}
		return ocispec.Descriptor{}, fmt.Errorf("index %s: no image for %s, only for %s: %w", index, platforms.DefaultString(), strings.Join(offered, ", "), ErrUnsupported)
	}
	return ocispec.Descriptor{MediaType: best.MediaType, Digest: best.Digest, Size: best.Size}, nil
}

// checkSizes refuses what cannot be added up, of layers that are here already, too: nobody else looks at those.
func (t *tree) checkSizes() error {
	total := t.manifest.Size
	for _, l := range append([]ocispec.Descriptor{t.config}, slices.Concat(t.layers, t.unnamed)...) {
		if l.Size < 0 || l.Size > maxImage-total {
			return fmt.Errorf("manifest %s: size %d of %q is not possible: %w", t.manifest.Digest, l.Size, l.Digest, ErrCorrupt)
		}
		total += l.Size
	}
	return nil
}

func checkManifest(t *tree) error {
	if len(t.layers) > maxLayers {
		return fmt.Errorf("manifest %s: %d layers, at most %d can be mounted: %w", t.manifest.Digest, len(t.layers), maxLayers, ErrUnsupported)
	}
	for i, l := range t.layers {
		base, suffix, _ := strings.Cut(l.MediaType, "+")
		if !images.IsLayerType(base) || suffix != "" && suffix != "gzip" && suffix != "zstd" {
			return fmt.Errorf("layer %d %s: media type %q is not supported: %w", i, l.Digest, l.MediaType, ErrUnsupported)
		}
	}
	return nil
}

// checkConfig reads what the layers are when unpacked, and refuses images for other platforms or with a user that cannot be.
func (s *Store) checkConfig(t *tree, raw []byte) error {
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return fmt.Errorf("configuration %s: %w: %w", t.config.Digest, ErrCorrupt, err)
	}
	if config.OS != "" && config.Architecture != "" && !s.platform.Match(platforms.Normalize(config.Platform)) {
		return fmt.Errorf("image is for %s, and this node is %s: %w", platforms.Format(config.Platform), platforms.DefaultString(), ErrUnsupported)
	}
	if len(config.RootFS.DiffIDs) != len(t.layers) {
		return fmt.Errorf("configuration %s has %d layers and manifest %s %d: %w", t.config.Digest, len(config.RootFS.DiffIDs), t.manifest.Digest, len(t.layers), ErrCorrupt)
	}
	for _, d := range config.RootFS.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.Canonical {
			return fmt.Errorf("configuration %s: layer digest %q is not valid: %w", t.config.Digest, d, ErrCorrupt)
		}
	}
	t.diffIDs = config.RootFS.DiffIDs
	t.chain = identity.ChainIDs(slices.Clone(t.diffIDs))
	_, _, err := parseUser(config.Config.User)
	return err
}
