// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/image/registry"
)

const (
	// resumes bounds tries in a row that brought next to nothing, and those of a blob that begin at its start again.
	resumes      = 5
	resumePause  = 250 * time.Millisecond
	enoughToGoOn = 64 << 10
	blobPrefix   = "blob://"
)

// document fetches a manifest, index or configuration, and reads it. One that is here and damaged is fetched anew.
func (p *puller) document(ctx context.Context, what string, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > registry.MaxDocument {
		return nil, fmt.Errorf("fetch %s %s: %d bytes, more than %d: %w", what, desc.Digest, desc.Size, registry.MaxDocument, ErrUnsupported)
	}
	for again := false; ; again = true {
		if err := p.blob(ctx, desc); err != nil {
			return nil, fmt.Errorf("fetch %s %s: %w", what, desc.Digest, err)
		}
		raw, err := p.s.readDocument(ctx, desc)
		if damaged(err) && !again {
			if err = p.s.dropBlob(ctx, desc.Digest, err); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read %s %s: %w", what, desc.Digest, err)
		}
		return raw, nil
	}
}

// blob makes sure that a blob is here and stays. Pulls that want the same one wait for the first.
func (p *puller) blob(ctx context.Context, desc ocispec.Descriptor) error {
	return p.blobAfter(ctx, desc, &tries{})
}

// blobAfter is blob, after some tries.
func (p *puller) blobAfter(ctx context.Context, desc ocispec.Descriptor, t *tries) error {
	if err := desc.Digest.Validate(); err != nil || !desc.Digest.Algorithm().Available() {
		return fmt.Errorf("digest %q is not valid: %w", desc.Digest, ErrCorrupt)
	}
	if desc.Size <= 0 {
		return fmt.Errorf("size %d is not possible: %w", desc.Size, ErrCorrupt)
	}
	key := blobPrefix + desc.Digest.String()
	if err := p.s.locks.Lock(ctx, key); err != nil {
		return err
	}
	defer p.s.locks.Unlock(key)
	here, err := p.here(ctx, desc)
	if t.found = here; here || err != nil {
		return err
	}
	return p.connected(ctx, func() error { return p.download(ctx, desc, t) })
}

// connected has fetch done when it is a blob's turn to come over the network.
func (p *puller) connected(ctx context.Context, fetch func() error) error {
	if p.session == nil {
		return fmt.Errorf("it is not in the archive: %w", ErrCorrupt)
	}
	if err := p.session.Acquire(ctx); err != nil {
		return err
	}
	defer p.session.Release()
	if err := p.s.downloads.Acquire(ctx, 1); err != nil {
		return err
	}
	defer p.s.downloads.Release(1)
	return fetch()
}

// here looks for a blob and keeps it from the collector.
func (p *puller) here(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	info, err := p.s.content.Info(ctx, desc.Digest)
	if err == nil {
		if err = p.hold(ctx, "content", desc.Digest.String()); err == nil {
			info, err = p.s.content.Info(ctx, desc.Digest) // the collector may have been faster
		}
	}
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err == nil && info.Size != desc.Size {
		return false, fmt.Errorf("manifest says %d bytes, they are %d: %w", desc.Size, info.Size, ErrCorrupt)
	}
	return err == nil, err
}

// tries is what was tried to fetch a blob.
type tries struct {
	inARow int  // that brought next to nothing
	wrong  bool // what came had not its digest
	anew   int  // how often the registry had not what is missing alone
	found  bool // it was here already
	// came is how many bytes the network has brought, due how many of the pull's total are the blob's.
	came, due int64
}

// errAfresh: the next try begins at the blob's start.
var errAfresh = errors.New("begins at its start again")

// download fetches a blob, and forgets what came of it where that is of no use.
func (p *puller) download(ctx context.Context, desc ocispec.Descriptor, t *tries) error {
	for {
		err := p.try(ctx, desc, t, func() (int64, error) { return p.attempt(ctx, desc, t) })
		afresh := errors.Is(err, errAfresh)
		if !afresh && !errors.Is(err, ErrCorrupt) {
			return err
		}
		if derr := p.drop(ctx, desc); derr != nil || !afresh {
			return errors.Join(err, derr)
		}
	}
}

// try tries until a blob is here. A connection that breaks or stalls costs a try only if it brought next to nothing; the next goes on where it
// broke. A wrong digest is tried once more, past the mirrors. errAfresh: try again, with nothing of what is here.
func (p *puller) try(ctx context.Context, desc ocispec.Descriptor, t *tries, attempt func() (int64, error)) error {
	for {
		t.inARow++
		got, err := attempt()
		afresh := false
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errdefs.IsFailedPrecondition(err), errors.Is(err, registry.ErrTooLarge): // digest or size is not as promised
			if err = fmt.Errorf("%w: %w", ErrCorrupt, err); t.wrong {
				return err
			}
			t.wrong, afresh = true, true
			p.session.GoDirect()
		case errors.Is(err, registry.ErrNoRange):
			// Also what a registry says that has less than the manifest promises: each time all of it comes.
			if t.anew++; t.anew > resumes {
				return fmt.Errorf("%d times from its start: %w", t.anew, err)
			}
			afresh = true
		case !registry.Interrupted(err) && !errors.Is(err, io.ErrUnexpectedEOF):
			return err
		case got >= enoughToGoOn:
			t.inARow = 0
		}
		if t.inARow >= resumes {
			return err
		}
		p.s.log.Debug("download is tried again", "image", p.name.String(), "blob", desc.Digest.String(), "afresh", afresh, "error", err)
		select {
		case <-time.After(p.s.resumePause<<t.inARow + rand.N(p.s.resumePause)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if afresh {
			return fmt.Errorf("%w: %w", errAfresh, err)
		}
	}
}

// drop forgets what is there of a blob, so that it does not stand in the way of the next try.
func (p *puller) drop(ctx context.Context, desc ocispec.Descriptor) error {
	if err := p.s.content.Abort(ctx, ingest(desc)); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("drop broken download: %w", err)
	}
	return nil
}

// ingest names a download in the content store. It is the same for every pull, so that each can go on with what another began.
func ingest(desc ocispec.Descriptor) string { return "blob-" + desc.Digest.String() }

// attempt fetches what is missing and returns how many bytes that were.
func (p *puller) attempt(ctx context.Context, desc ocispec.Descriptor, t *tries) (int64, error) {
	w, err := content.OpenWriter(ctx, p.s.content, content.WithRef(ingest(desc)), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		p.progress.expect(t, 0)
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	defer w.Close()
	before, err := w.Status()
	if err != nil {
		return 0, err
	}
	if before.Offset > desc.Size {
		return 0, fmt.Errorf("%d bytes of %d: %w", before.Offset, desc.Size, errdefs.ErrFailedPrecondition)
	}
	p.progress.expect(t, desc.Size-before.Offset)
	r, err := p.session.FetchParts(ctx, desc, p.s.cfg.LayerConnections, p.session.Share(p.s.downloads))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	earlier := t.came
	err = content.Copy(ctx, w, &counter{r, p.progress, t}, desc.Size, desc.Digest)
	return t.came - earlier, err
}

// counter counts what comes over the network.
type counter struct {
	io.ReadSeekCloser
	progress *progress
	t        *tries
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.ReadSeekCloser.Read(b)
	c.progress.came(c.t, int64(n))
	return n, err
}
