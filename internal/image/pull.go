// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/internal/image/registry"
	"github.com/berth-run/berth/internal/linux/syncfs"
	"github.com/berth-run/berth/internal/telemetry"
)

// PullReport is what a pull came to.
type PullReport struct {
	// Context tells the trace.
	Context context.Context
	Took    time.Duration
	// Bytes came over the network.
	Bytes int64
	// Layers are those that were looked for, Present those of them that were there already. Both are 0 for an image that was there as a whole.
	Layers, Present int
	Err             error
}

func (p *progress) report(ctx context.Context, took time.Duration, err error) PullReport {
	return PullReport{Context: ctx, Took: took, Bytes: p.bytes.Load(), Layers: int(p.layers.Load()), Present: int(p.present.Load()), Err: err}
}

// puller is one pull under way.
type puller struct {
	s        *Store
	name     reference.Named
	session  *registry.Session
	lease    leases.Lease
	progress *progress
	// form is that in which layers that are not here yet are unpacked; empty: the node's.
	form string
	// names, of an import, are what the image is called. There is no session then.
	names []string
}

// erofs tells whether layers become EROFS files.
func (p *puller) erofs() bool { return p.form == erofsForm || p.form == "" && p.s.erofs }

// pull does the work of a flight. Its errors name the image and the stage, and have a class.
func (s *Store) pull(ctx context.Context, name reference.Named, a *Auth, form string, progress *progress) (Image, error) {
	begin := time.Now()
	ctx = scoped(ctx)
	im, err := s.pullImage(ctx, name, a, form, progress)
	if err == nil {
		_, err = s.chainIn(ctx, im, form)
	}
	if s.cfg.Pulled != nil {
		s.cfg.Pulled(progress.report(ctx, time.Since(begin), err))
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		err = fmt.Errorf("pull image %s: %w", name, classify(err))
		s.log.Warn("pull failed", "image", name.String(), "took", time.Since(begin), "error", err)
		return Image{}, err
	}
	s.log.Info("image is pulled", "image", name.String(), "id", im.ID, "size", im.Size, "fetched", progress.bytes.Load(), "took", time.Since(begin))
	return im, nil
}

func (s *Store) pullImage(ctx context.Context, name reference.Named, a *Auth, form string, progress *progress) (Image, error) {
	progress.at("resolve")
	session, err := s.registry.Session(ctx, registry.Request{Name: name, Auth: a, CertsDirs: *s.certsDirs.Load()})
	if err != nil {
		return Image{}, err
	}
	defer session.Close()
	resolving, span := telemetry.Start(ctx, "image", "resolve")
	target, err := session.Resolve(resolving)
	span.End(err)
	if err != nil {
		return Image{}, fmt.Errorf("resolve: %w", err)
	}
	target = ocispec.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size}
	if im, ok := s.current(name, target); ok && s.guard.check(ctx, session, name, target.Digest) == nil { // the usual case of "always pull": nothing to do, nothing to write
		return im, nil
	}
	lease, err := s.leases.Create(ctx, leases.WithID(pullPrefix+purpose(name)+rand.Text()), leases.WithExpiration(2*pullTime))
	if err != nil {
		return Image{}, fmt.Errorf("begin: %w", err)
	}
	p := &puller{s: s, name: name, session: session, lease: lease, progress: progress, form: form}
	im, err := p.run(leases.WithLease(ctx, lease.ID), target)
	if err := s.endPull(ctx, name, lease, err); err != nil {
		s.log.Warn("end of pull", "image", name.String(), "error", err)
	}
	s.collectSoon()
	return im, err
}

// current finds the image that name stands for already.
func (s *Store) current(name reference.Named, target ocispec.Descriptor) (Image, bool) {
	idx := s.index.Load()
	for _, ref := range references(name, target) {
		if at, ok := idx.targets[ref]; !ok || at != target.Digest {
			return Image{}, false
		}
	}
	im, err := s.Status(references(name, target)[0])
	return im, err == nil
}

// references are the names that a pull gives an image: by digest, and by tag where it was asked for by one.
func references(name reference.Named, target ocispec.Descriptor) []string {
	refs := []string{reference.TrimNamed(name).String() + "@" + target.Digest.String()}
	if _, tagged := name.(reference.Tagged); tagged {
		refs = append(refs, name.String())
	}
	return refs
}

// references are the names that the image gets.
func (p *puller) references(target ocispec.Descriptor) []string {
	if p.names != nil {
		return p.names
	}
	return references(p.name, target)
}

func (p *puller) run(ctx context.Context, target ocispec.Descriptor) (Image, error) {
	t, err := p.prepare(ctx, target)
	if err != nil {
		return Image{}, err
	}
	return p.finish(ctx, t)
}

// prepare fetches and unpacks all that is missing.
func (p *puller) prepare(ctx context.Context, target ocispec.Descriptor) (*tree, error) {
	p.progress.at("fetch")
	fetching, span := telemetry.Start(ctx, "image", "fetch manifest")
	t, err := p.fetchTree(fetching, target)
	span.End(err)
	if err != nil {
		return nil, err
	}
	if p.session != nil { // names of imports were asked about before
		p.progress.at("verify")
		if err := p.s.guard.check(ctx, p.session, p.name, append(slices.Clone(t.indexes), t.manifest.Digest)...); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
	}
	p.progress.at("fetch")
	if err := p.fetchUnnamed(ctx, t); err != nil {
		return nil, err
	}
	return t, p.unpack(ctx, t)
}

// finish has the image listed, when the disk has it.
func (p *puller) finish(ctx context.Context, t *tree) (Image, error) {
	p.progress.at("record")
	ctx, span := telemetry.Start(ctx, "image", "record")
	err := p.conclude(ctx, t)
	span.End(err)
	if err != nil {
		return Image{}, fmt.Errorf("record: %w", err)
	}
	return p.s.Status(p.references(t.root)[0])
}

// conclude makes the image known, once the disk has all of it.
func (p *puller) conclude(ctx context.Context, t *tree) error {
	// What the record says must be true after a power cut, too: blobs are synced one by one, unpacked files all at once here.
	if !p.s.cfg.SkipSync {
		if err := syncfs.Sync(p.s.cfg.Root); err != nil {
			return err
		}
	}
	if err := p.record(ctx, t); err != nil {
		return err
	}
	return errors.Join(p.s.refresh(ctx), p.s.count(ctx))
}

// record writes what keeps the image from the collector, and then its names, all at once.
func (p *puller) record(ctx context.Context, t *tree) error {
	// Not inside the transaction below: the content store takes a lock of its own before it begins one.
	for _, l := range t.labels(p.s.cfg.KeepLayers) {
		info := content.Info{Digest: l.blob, Labels: map[string]string{l.key: l.value}}
		if _, err := p.s.content.Update(ctx, info, "labels."+l.key); err != nil {
			return fmt.Errorf("%s: %w", l.blob, err)
		}
	}
	return p.s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, ref := range p.references(t.root) {
			if err := p.s.name(ctx, ref, t.root); err != nil {
				return err
			}
		}
		return nil
	})
}

// classify gives an error of a pull the class that a caller can act on.
func classify(err error) error {
	class := error(nil)
	switch {
	case errors.Is(err, ErrNoSpace), errors.Is(err, ErrNotFound), errors.Is(err, ErrUnsupported), errors.Is(err, ErrCorrupt), errors.Is(err, ErrUnauthorized), errors.Is(err, ErrUnavailable),
		errors.Is(err, ErrRefused), errors.Is(err, ErrSnapshotter):
	case outOfSpace(err):
		class = ErrNoSpace
	case errors.Is(err, errAbandoned), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		class = ErrUnavailable
	case errors.Is(err, registry.ErrNotFound):
		class = ErrNotFound
	case registry.IsSchema1(err):
		class = ErrUnsupported
	case errors.Is(err, layer.ErrCorrupt), errors.Is(err, registry.ErrTooLarge):
		class = ErrCorrupt
	case errors.Is(err, registry.ErrNoRange), errors.Is(err, io.ErrUnexpectedEOF): // what came has ended too early, or its rest never comes
		class = ErrUnavailable
	}
	if class != nil {
		return fmt.Errorf("%w: %w", class, err)
	}
	return err
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
