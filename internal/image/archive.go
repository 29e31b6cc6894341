// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/image/layer"
)

// importPrefix begins the names of leases and downloads of imports. Nothing is kept of one that failed.
const importPrefix = "import-"

// Import takes the images of an archive (OCI layout, or one of `docker save`; with gzip, zstd or neither) that are for this node. Name is for
// an archive with one image and no name for it. All images are there, or none of them is. Errors: ErrCorrupt, ErrNoSpace, ErrUnsupported,
// ErrInvalidReference, ErrRefused: the signature policy lets no archive have the name.
func (s *Store) Import(ctx context.Context, r io.Reader, name string) ([]Image, error) {
	id := importPrefix + rand.Text()
	ctx = scoped(ctx)
	lease, err := s.leases.Create(ctx, leases.WithID(id), leases.WithExpiration(pullTime))
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	all, err := s.importAll(leases.WithLease(ctx, lease.ID), lease, r, name)
	if derr := s.dropLease(context.WithoutCancel(ctx), lease); derr != nil {
		s.log.Warn("end of import", "error", derr)
	}
	s.collectSoon()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("import images: %w", classify(err))
	}
	for _, im := range all {
		s.log.Info("image is imported", "id", im.ID, "names", im.RepoTags)
	}
	return all, nil
}

// importable is an image of an archive, and the names it gets.
type importable struct {
	target ocispec.Descriptor
	names  []string
}

func (s *Store) importAll(ctx context.Context, lease leases.Lease, r io.Reader, name string) ([]Image, error) {
	plain, closer, err := layer.Decompress(until{ctx, r})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer closer()
	in := &spaced{Reader: plain, root: s.cfg.Root}
	gated := newGate(in)
	index, err := archive.ImportIndex(ctx, ownRefs{s.content, lease.ID + "-"}, gated)
	if cerr := gated.Close(); err == nil {
		err = cerr
	}
	switch {
	case in.err != nil:
		return nil, in.err
	case err != nil && ctx.Err() == nil && !outOfSpace(err):
		return nil, fmt.Errorf("%w: read archive: %w", ErrCorrupt, err)
	case err != nil:
		return nil, err
	}
	todo, err := s.importables(ctx, index, name)
	if err != nil {
		return nil, err
	}
	if err := s.mayImport(todo); err != nil {
		return nil, err
	}
	var trees []*tree
	pullers := make([]*puller, len(todo))
	for i, one := range todo {
		named, err := reference.ParseNamed(one.names[0])
		if err != nil {
			return nil, err
		}
		pullers[i] = &puller{s: s, name: named, lease: lease, progress: &progress{}, names: one.names}
		t, err := pullers[i].prepare(ctx, one.target)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.names[0], err)
		}
		trees = append(trees, t)
	}
	var out []Image
	for i, p := range pullers {
		im, err := p.finish(ctx, trees[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		out = append(out, im)
	}
	return out, nil
}

// mayImport asks the signature policy about each name.
func (s *Store) mayImport(todo []importable) error {
	for _, one := range todo {
		for _, n := range one.names {
			named, err := reference.ParseNamed(n)
			if err == nil {
				err = s.guard.given(named, true)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", n, err)
			}
		}
	}
	return nil
}

// importables are the images of an archive that are for this node.
func (s *Store) importables(ctx context.Context, index ocispec.Descriptor, name string) ([]importable, error) {
	raw, err := s.readDocument(ctx, index)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(index, raw)
	if err != nil {
		return nil, err
	}
	var mine []ocispec.Descriptor
	for _, m := range doc.Manifests {
		if m.Platform == nil || s.platform.Match(*m.Platform) {
			mine = append(mine, m)
		}
	}
	if len(mine) == 0 {
		_, err := s.choose(index.Digest, doc.Manifests) // says what there is
		return nil, err
	}
	distinct := map[digest.Digest]*importable{}
	var order []digest.Digest
	for _, m := range mine {
		named, err := nameOf(m.Annotations, name)
		if err != nil {
			return nil, err
		}
		one := distinct[m.Digest]
		if one == nil {
			one = &importable{target: ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}}
			distinct[m.Digest] = one
			order = append(order, m.Digest)
		}
		if !slices.Contains(one.names, named) {
			one.names = append(one.names, named)
		}
	}
	if name != "" && len(order) > 1 {
		return nil, fmt.Errorf("a name was given, and the archive has %d images: %w", len(order), ErrInvalidReference)
	}
	out := make([]importable, 0, len(order))
	for _, d := range order {
		out = append(out, *distinct[d])
	}
	return out, nil
}

// nameOf is what an image of an archive is called: as the caller says, as containerd and docker write it, or as the OCI image layout has it, where
// it may be a tag alone.
func nameOf(annotations map[string]string, given string) (string, error) {
	for _, n := range []string{given, annotations[images.AnnotationImageName], annotations[ocispec.AnnotationRefName]} {
		if n == "" {
			continue
		}
		named, err := normalize(n)
		if err != nil {
			return "", err
		}
		if _, tagged := named.(reference.Tagged); !tagged {
			return "", fmt.Errorf("image name %q: must have a tag, not a digest: %w", n, ErrInvalidReference)
		}
		if n == annotations[ocispec.AnnotationRefName] && !strings.ContainsAny(n, "/:") {
			return "", fmt.Errorf("the archive says only %q of an image's name: give the whole name: %w", n, ErrInvalidReference)
		}
		return named.String(), nil
	}
	return "", fmt.Errorf("the archive has an image without a name: give one: %w", ErrInvalidReference)
}

// ownRefs is a content store in which downloads have names of their own: two archives have different content under the same names, and one must
// never go on where the other stopped.
type ownRefs struct {
	content.Store
	prefix string
}

func (o ownRefs) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	return o.Store.Writer(ctx, append(opts, func(w *content.WriterOpts) error {
		w.Ref = o.prefix + w.Ref
		return nil
	})...)
}

func (o ownRefs) Abort(ctx context.Context, ref string) error {
	return o.Store.Abort(ctx, o.prefix+ref)
}

// spaceEvery is after how many bytes an import looks how much is left of the disk.
const spaceEvery = 8 << 20

// spaced is a reader that ends when little is left of the disk: what comes out of a compressed archive has no bound of its own.
type spaced struct {
	io.Reader
	root  string
	since int
	err   error
}

func (s *spaced) Read(p []byte) (int, error) {
	if s.since <= 0 {
		s.since = spaceEvery
		var st syscall.Statfs_t
		if err := syscall.Statfs(s.root, &st); err != nil {
			s.err = fmt.Errorf("file system of %s: %w", s.root, err)
		} else if free := st.Bavail * uint64(st.Bsize); free < spare {
			s.err = fmt.Errorf("%s has %d bytes left, of which %d are spared: remove images or make room: %w", s.root, free, uint64(spare), ErrNoSpace)
		}
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.Reader.Read(p)
	s.since -= n
	return n, err
}

// ErrLayersDropped: an image cannot be exported, since its layers are kept unpacked only.
var ErrLayersDropped = errors.New("compressed layers were not kept")

// Export writes images as a tar archive: an OCI image layout with the files beside it that make it one of `docker save`. Of an index, what it has
// for this node is written. Errors, before anything is written: ErrNotFound, ErrLayersDropped.
func (s *Store) Export(ctx context.Context, w io.Writer, refs []string) error {
	ctx = scoped(ctx)
	var opts []archive.ExportOpt
	for _, ref := range refs {
		opt, err := s.exportable(ctx, ref)
		if err != nil {
			return fmt.Errorf("export image %s: %w", ref, err)
		}
		opts = append(opts, opt)
	}
	if err := archive.Export(ctx, s.content, w, opts...); err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	return nil
}

func (s *Store) exportable(ctx context.Context, ref string) (archive.ExportOpt, error) {
	im, err := s.Status(ref)
	if err != nil {
		return nil, err
	}
	names := im.RepoTags
	if named, err := normalize(ref); err == nil && slices.Contains(im.RepoTags, named.String()) {
		names = []string{named.String()}
	}
	targets := s.targetsOf(im)
	if len(targets) == 0 {
		return nil, fmt.Errorf("it was removed meanwhile: %w", ErrNotFound)
	}
	target, err := s.content.Info(ctx, targets[0])
	if err != nil {
		return nil, err
	}
	t, _, err := s.readTree(ctx, ocispec.Descriptor{Digest: target.Digest, Size: target.Size})
	if err != nil {
		return nil, err
	}
	kept, err := s.keepsLayers(ctx, t)
	if err != nil {
		return nil, err
	}
	for _, l := range slices.Concat(t.layers, t.unnamed) {
		if _, err := s.content.Info(ctx, l.Digest); errdefs.IsNotFound(err) || err == nil && !kept {
			return nil, fmt.Errorf("layer %s: %w: set images.keep_layers = true, restart the daemon, remove the image and pull it again", l.Digest, ErrLayersDropped)
		} else if err != nil {
			return nil, err
		}
	}
	if !images.IsManifestType(t.manifest.MediaType) {
		t.manifest.MediaType = ocispec.MediaTypeImageManifest
		if images.IsDockerType(t.config.MediaType) {
			t.manifest.MediaType = images.MediaTypeDockerSchema2Manifest
		}
	}
	return archive.WithManifest(t.manifest, names...), nil
}
