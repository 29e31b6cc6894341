// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/linux/fsys"
)

const (
	// consumeFrom is from what size on a compressed layer gives its space back while it is unpacked. Smaller ones go with the next collection.
	consumeFrom = 1 << 20
	// consumeStep is given back at a time; of a layer that is unpacked while it comes the consumeShare-th part, if that is more.
	consumeStep, consumeShare = 1 << 20, 64
)

// consuming are the blobs that are given back to the disk while they are read, and so are not what their digests say.
type consuming struct {
	mu  sync.Mutex
	all map[digest.Digest]int
}

func (c *consuming) add(d digest.Digest, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[digest.Digest]int{}
	}
	if c.all[d] += n; c.all[d] == 0 {
		delete(c.all, d)
	}
}

func (c *consuming) has(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[d] > 0
}

func (s *Store) blobPath(d digest.Digest) string {
	return filepath.Join(s.cfg.Root, contentDir, "blobs", d.Algorithm().String(), d.Encoded())
}

// consumes tells whether a compressed layer is of no use any more once it is read. What can be fetched again only: a crash in the middle costs
// that, as does another image that wants the same layer on other ones at this very moment. What was here before is left alone.
func (u *unpacking) consumes(desc ocispec.Descriptor) bool {
	if u.s.cfg.KeepLayers || u.session == nil || desc.Size < consumeFrom {
		return false
	}
	n := 0
	for _, l := range u.t.layers {
		if l.Digest == desc.Digest {
			n++
		}
	}
	return n == 1
}

// openLayer opens a compressed layer to be unpacked. So that the disk need not hold all of it twice, it gives back what is read.
func (u *unpacking) openLayer(ctx context.Context, i int) (io.ReadCloser, error) {
	desc := u.t.layers[i]
	if a := u.arriving[i]; a != nil {
		return a.follow(ctx), nil
	}
	if u.found[i] || !u.consumes(desc) {
		blob, err := u.s.content.ReaderAt(ctx, ocispec.Descriptor{Digest: desc.Digest, Size: desc.Size})
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{content.NewReader(blob), blob}, nil
	}
	if _, err := u.s.content.Info(ctx, desc.Digest); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(u.s.blobPath(desc.Digest), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: %w", desc.Digest, errdefs.ErrNotFound, err)
	} else if err != nil {
		return nil, err
	}
	u.s.consuming.add(desc.Digest, 1)
	return &consumer{s: u.s, file: returning{File: f, step: consumeStep}, digest: desc.Digest, size: desc.Size}, nil
}

// returning is a file whose beginning is given back to the disk.
type returning struct {
	*os.File

	step   int64 // at a time
	gone   int64 // was given back
	cannot bool  // the file system
}

// giveBack has the disk take back all before at, if that is a step more than it has.
func (r *returning) giveBack(at int64) error {
	if at-r.gone < r.step || r.cannot {
		return nil
	}
	err := fsys.PunchHole(r.File, r.gone, at-r.gone)
	if r.cannot = errors.Is(err, errors.ErrUnsupported); r.cannot {
		return nil
	}
	r.gone = at
	return err
}

// consumer is a file that loses what was read of it.
type consumer struct {
	s      *Store
	file   returning
	digest digest.Digest
	size   int64
	read   int64
}

func (c *consumer) Read(p []byte) (int, error) {
	n, err := c.file.Read(p)
	c.read += int64(n)
	if gerr := c.file.giveBack(c.read); gerr != nil {
		return n, gerr
	}
	return n, err
}

// Returns implements layer.Returner. What the disk keeps until a step is done is not in it.
func (c *consumer) Returns() int64 { return c.size - c.file.step }

func (c *consumer) Close() error {
	c.s.consuming.add(c.digest, -1)
	return c.file.Close()
}

// consumed drops what is left of a compressed layer.
func (u *unpacking) consumed(ctx context.Context, i int) error {
	desc := u.t.layers[i]
	if u.found[i] || !u.consumes(desc) {
		return nil
	}
	if err := u.s.locks.Lock(ctx, blobPrefix+desc.Digest.String()); err != nil {
		return err
	}
	defer u.s.locks.Unlock(blobPrefix + desc.Digest.String())
	return u.s.deleteBlob(ctx, desc.Digest)
}

// fetchAgain is for a layer that is to be read once more: half of it may be consumed.
func (u *unpacking) fetchAgain(ctx context.Context, i int) error {
	return errors.Join(u.consumed(ctx, i), u.blob(ctx, u.t.layers[i]))
}

// deleteBlob deletes a blob and its file at once. Preconditions: the blob's lock is held.
func (s *Store) deleteBlob(ctx context.Context, d digest.Digest) error {
	for _, store := range []content.Manager{s.content, s.blobs} {
		if err := store.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("drop blob %s: %w", d, err)
		}
	}
	return nil
}
