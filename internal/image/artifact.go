// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/image/layer"
)

// An OCI artifact (image-spec, "Guidelines for Artifact Usage") is a manifest of files: models, WebAssembly modules, configurations. Pods mount
// it as an image volume (KEP-4639). Each of its layers is one file, whatever the media type says of it, and is kept as a layer of an image is:
// so all that is said of layers (sharing, resumption, collection, checks) is true of artifacts.

// fileNames are the annotations that name a layer's file: that of the image specification, and that of the model specification.
var fileNames = []string{ocispec.AnnotationTitle, "org.cncf.model.filepath"}

const (
	maxFileName  = 1024
	maxNamePart  = 255 // of every Linux file system
	maxFileDepth = 16
)

// Runnable is nil for container images. ErrUnsupported: an artifact has files and no program.
func (im Image) Runnable() error {
	if im.Artifact == "" {
		return nil
	}
	return fmt.Errorf("it is an OCI artifact (%s) and no container image: mount it as a volume of type image: %w", im.Artifact, ErrUnsupported)
}

// artifactType is empty for container images. What runs has an image's configuration; what has one for the sake of registries that take nothing
// else has no layer that could be unpacked, and says what it is.
func (d document) artifactType() string {
	if images.IsConfigType(d.Config.MediaType) && (d.ArtifactType == "" || len(d.Layers) == 0 || slices.ContainsFunc(d.Layers, isRootfs)) {
		return ""
	}
	return cmp.Or(d.ArtifactType, d.Config.MediaType)
}

func isRootfs(l ocispec.Descriptor) bool {
	base, _, _ := strings.Cut(l.MediaType, "+")
	return images.IsLayerType(base)
}

// files finds out which layers of an artifact are files, and what they are called. ErrUnsupported and ErrCorrupt name the layer.
func (t *tree) files(artifact string, layers []ocispec.Descriptor) error {
	if artifact == "" { // a configuration without a media type is of no kind at all
		return fmt.Errorf("manifest %s: says neither an artifact type nor that of its configuration: %w", t.manifest.Digest, ErrUnsupported)
	}
	t.artifact, t.layers = artifact, nil
	for i, l := range layers {
		name := fileName(l)
		if name == "" {
			t.unnamed = append(t.unnamed, l)
			continue
		}
		name, err := checkFileName(name)
		if err != nil {
			return fmt.Errorf("layer %d %s of artifact %s: %w", i, l.Digest, t.manifest.Digest, err)
		}
		if l.Size < 0 || l.Digest.Validate() != nil {
			return fmt.Errorf("layer %d %q of artifact %s: digest or size are not valid: %w", i, l.Digest, t.manifest.Digest, ErrCorrupt)
		}
		t.layers, t.names = append(t.layers, l), append(t.names, name)
		t.diffIDs = append(t.diffIDs, digest.FromString("file of an OCI artifact\n"+name+"\n"+l.Digest.String()))
	}
	switch {
	case len(t.layers) == 0:
		return fmt.Errorf("artifact %s (%s): none of its %d layers is named by the annotation %s, so there is no file to mount: %w",
			t.manifest.Digest, artifact, len(layers), ocispec.AnnotationTitle, ErrUnsupported)
	case len(t.layers) > maxLayers:
		return fmt.Errorf("artifact %s: %d files, at most %d can be mounted: %w", t.manifest.Digest, len(t.layers), maxLayers, ErrUnsupported)
	}
	t.chain = identity.ChainIDs(slices.Clone(t.diffIDs))
	return t.checkNames()
}

func fileName(l ocispec.Descriptor) string {
	for _, key := range fileNames {
		if name := l.Annotations[key]; name != "" {
			return name
		}
	}
	return ""
}

// checkFileName: a name is written by whoever pushed the artifact.
func checkFileName(name string) (string, error) {
	parts := strings.Split(name, "/")
	switch {
	case len(name) > maxFileName || len(parts) > maxFileDepth:
		return "", fmt.Errorf("file name of %d bytes in %d folders is too long: %w", len(name), len(parts)-1, ErrUnsupported)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "", fmt.Errorf("file name %q has characters that cannot be printed: %w", name, ErrUnsupported)
	case path.IsAbs(name) || strings.ContainsRune(name, '\\'):
		return "", fmt.Errorf("file name %q is not a relative path: %w", name, ErrCorrupt)
	}
	for _, p := range parts {
		switch {
		case p == "..":
			return "", fmt.Errorf("file name %q leads out of the artifact: %w", name, ErrCorrupt)
		case strings.HasPrefix(p, ".wh."): // in a layer that takes away what is below
			return "", fmt.Errorf("file name %q begins as a whiteout does: %w", name, ErrUnsupported)
		case len(p) > maxNamePart:
			return "", fmt.Errorf("file name %q has a part of more than %d bytes: %w", name, maxNamePart, ErrUnsupported)
		}
	}
	if strings.HasSuffix(name, "/") || path.Clean(name) == "." {
		return "", fmt.Errorf("file name %q names a folder: %w", name, ErrCorrupt)
	}
	return path.Clean(name), nil
}

// checkNames refuses an artifact of which one file would hide another.
func (t *tree) checkNames() error {
	seen := map[string]bool{}
	for _, name := range t.names {
		if seen[name] {
			return fmt.Errorf("artifact %s: two layers are the file %q: %w", t.manifest.Digest, name, ErrCorrupt)
		}
		seen[name] = true
	}
	for _, name := range t.names {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if seen[dir] {
				return fmt.Errorf("artifact %s: %q is a file and a folder: %w", t.manifest.Digest, dir, ErrCorrupt)
			}
		}
	}
	return nil
}

// source is a layer on its way into a snapshot: the archive that it is, or one with the file that it is.
type source struct {
	io.Reader
	blob   io.ReadCloser
	diffID digest.Digest   // of a file; empty for archives
	check  digest.Verifier // of a file
}

// openSource opens a layer to be unpacked.
func (u *unpacking) openSource(ctx context.Context, i int) (*source, error) {
	desc := u.t.layers[i]
	if u.t.artifact == "" {
		blob, err := u.openLayer(ctx, i)
		return &source{Reader: blob, blob: blob}, err
	}
	blob := io.NopCloser(io.Reader(strings.NewReader("")))
	if desc.Size > 0 {
		var err error
		if blob, err = u.openLayer(ctx, i); err != nil {
			return nil, err
		}
	}
	s := &source{blob: blob, diffID: u.t.diffIDs[i], check: desc.Digest.Verifier()}
	var err error
	if s.Reader, err = layer.File(u.t.names[i], desc.Size, io.TeeReader(blob, s.check)); err != nil {
		return nil, fmt.Errorf("%w: %w: %w", ErrCorrupt, err, blob.Close())
	}
	return s, nil
}

// Returns implements layer.Returner.
func (s *source) Returns() int64 {
	if back, ok := s.blob.(layer.Returner); ok {
		return back.Returns()
	}
	return 0
}

// Unpacked implements layer.Arriving.
func (s *source) Unpacked(n int64) {
	if a, ok := s.blob.(layer.Arriving); ok {
		a.Unpacked(n)
	}
}

// Interrupt implements layer.Arriving.
func (s *source) Interrupt() {
	if a, ok := s.blob.(layer.Arriving); ok {
		a.Interrupt()
	}
}

func (s *source) Close() error { return s.blob.Close() }

// identify tells what was unpacked, once all is read: archive is the digest of what was read. A file that is not what its digest promises is
// ErrCorrupt.
func (s *source) identify(archive digest.Digest) (digest.Digest, error) {
	if s.check == nil {
		return archive, nil
	}
	if !s.check.Verified() {
		return "", fmt.Errorf("content is not what the digest says: %w", ErrCorrupt)
	}
	return s.diffID, nil
}

// fetchUnnamed fetches what of an artifact is no file, for export.
func (p *puller) fetchUnnamed(ctx context.Context, t *tree) error {
	if !p.s.cfg.KeepLayers {
		return nil
	}
	for _, l := range t.unnamed {
		if err := p.blob(ctx, l); err != nil {
			return fmt.Errorf("fetch layer %s: %w", l.Digest, err)
		}
	}
	return nil
}
