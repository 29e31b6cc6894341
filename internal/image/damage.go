// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/image/registry"
	"github.com/berth-run/berth/internal/linux/fsys"
)

// readDocument reads a manifest, index or configuration of the store. ErrCorrupt: it is not what its digest promises. ErrUnsupported: it is larger than
// any honest one.
func (s *Store) readDocument(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	blob, err := s.content.ReaderAt(ctx, ocispec.Descriptor{Digest: desc.Digest, Size: desc.Size})
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	if blob.Size() != desc.Size {
		return nil, fmt.Errorf("%s is kept with %d bytes, want %d: %w", desc.Digest, blob.Size(), desc.Size, ErrCorrupt)
	}
	if desc.Size > registry.MaxDocument {
		return nil, fmt.Errorf("%s has %d bytes, more than the %d that a document may have: %w", desc.Digest, desc.Size, registry.MaxDocument, ErrUnsupported)
	}
	raw := make([]byte, desc.Size)
	if _, err := io.ReadFull(io.NewSectionReader(blob, 0, desc.Size), raw); err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	if is := desc.Digest.Algorithm().FromBytes(raw); is != desc.Digest {
		return nil, fmt.Errorf("%s is kept as %s: %w", desc.Digest, is, ErrCorrupt)
	}
	return raw, nil
}

// verifyBlob compares a blob of the store with its digest.
func (s *Store) verifyBlob(ctx context.Context, d digest.Digest) error {
	blob, err := s.content.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return err
	}
	defer blob.Close()
	v := d.Verifier()
	if _, err := io.Copy(v, until{ctx, content.NewReader(blob)}); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	if !v.Verified() {
		return fmt.Errorf("%s: content is not what the digest says: %w", d, ErrCorrupt)
	}
	return nil
}

// verifyOnDisk is verifyBlob past the page cache: what is in memory may be better than what is on the disk.
func (s *Store) verifyOnDisk(ctx context.Context, d digest.Digest) error {
	f, err := os.Open(s.blobPath(d))
	if err == nil {
		err = errors.Join(fsys.DropCache(f), f.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.verifyBlob(ctx, d)
}

// until is a reader that ends with a context.
type until struct {
	ctx context.Context
	io.Reader
}

func (u until) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.Reader.Read(p)
}

// damaged tells whether a blob that the metadata knows cannot be used: lost, cut, changed, or on a part of the disk that cannot be read.
func damaged(err error) bool {
	return errors.Is(err, ErrCorrupt) || errdefs.IsNotFound(err) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EIO)
}

// dropBlob takes a damaged blob out of the store, its file too: the content store would else give a file that is there to whoever wants to write
// the blob anew. It is idempotent.
func (s *Store) dropBlob(ctx context.Context, d digest.Digest, reason error) error {
	if err := s.locks.Lock(ctx, blobPrefix+d.String()); err != nil {
		return err
	}
	defer s.locks.Unlock(blobPrefix + d.String())
	if !damaged(s.verifyBlob(ctx, d)) { // another pull has it mended already
		return nil
	}
	s.log.Error("blob is damaged and dropped; the next pull of its images fetches it anew", "blob", d.String(), "error", reason)
	return s.deleteBlob(ctx, d)
}
