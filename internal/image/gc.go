// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/linux/host"
)

// gcDelay gathers removals that come in a row into one collection.
const gcDelay = 500 * time.Millisecond

// collectSoon asks for a collection in the background.
func (s *Store) collectSoon() {
	select {
	case s.gcSoon <- struct{}{}:
	default: // one is asked for already
	}
}

// collectAfter asks for a collection when a lease has run out.
func (s *Store) collectAfter(d time.Duration) { time.AfterFunc(d, s.collectSoon) }

func (s *Store) collectGarbage() {
	if err := s.suspect(scoped(s.life)); err != nil && s.life.Err() == nil {
		s.log.Warn("look for what an earlier life has left", "error", err)
	}
	for {
		select {
		case <-s.life.Done():
			return
		case <-s.gcSoon:
		}
		select {
		case <-s.life.Done():
			return
		case <-time.After(gcDelay):
		}
		if err := s.GC(s.life); err != nil && s.life.Err() == nil {
			s.log.Error("collect garbage", "error", err)
		}
	}
}

// suspect makes the next collection compare folders and blobs with the metadata. It does that only for stores from which something was removed
// in its own life, so something is: a crash between disk and metadata leaves files that nothing else would find.
func (s *Store) suspect(ctx context.Context) error {
	const name = "suspect"
	if err := s.locks.Lock(ctx, name); err != nil {
		return err
	}
	defer s.locks.Unlock(name)
	if _, err := s.snapshots.Prepare(ctx, name, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	// A collection that is under way may be faster.
	if err := s.snapshots.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	raw := []byte(name)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := content.WriteBlob(ctx, s.content, name, bytes.NewReader(raw), desc); err != nil {
		return err
	}
	if err := s.content.Delete(ctx, desc.Digest); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// emptyTrash deletes the writable layers of removed containers, one after the other. It is not part of the collection, which a
// container with a million files would hold up.
func (s *Store) emptyTrash() {
	for {
		if err := s.sweepTrash(); err != nil {
			s.log.Error("delete writable layers", "error", err)
		}
		select {
		case <-s.life.Done():
			return
		case <-s.trashed:
		}
	}
}

func (s *Store) sweepTrash() error {
	trash := s.trash()
	entries, err := os.ReadDir(trash)
	errs := []error{err}
	for _, e := range entries {
		if s.life.Err() != nil {
			break // the next life goes on
		}
		// os.RemoveAll goes from folder to folder by file descriptor and follows no link.
		errs = append(errs, os.RemoveAll(filepath.Join(trash, e.Name())))
	}
	return errors.Join(errs...)
}

// GC deletes blobs and layers that no image, container or pull needs.
func (s *Store) GC(ctx context.Context) error {
	begin := time.Now()
	err := s.gc(scoped(ctx))
	if s.cfg.Collected != nil {
		s.cfg.Collected(time.Since(begin), err)
	}
	return err
}

func (s *Store) gc(ctx context.Context) error {
	s.remind(ctx)
	undeleted := s.dropAgain(ctx)
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("images: %w", errors.Join(undeleted, err))
	}
	s.countRemotes(ctx)
	return errors.Join(undeleted, s.sweepLinks(), s.count(ctx))
}

type usage struct{ bytes, inodes int64 }

// count adds up what the store takes, from the books that were kept when blobs were written and layers unpacked.
func (s *Store) count(ctx context.Context) error {
	s.counting.Lock()
	defer s.counting.Unlock()
	var total usage
	err := s.content.Walk(ctx, func(info content.Info) error {
		total.bytes += info.Size
		total.inodes++
		return nil
	})
	if err != nil {
		return fmt.Errorf("count blobs: %w", err)
	}
	var names []string
	err = s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			names = append(names, info.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("count layers: %w", err)
	}
	sizes := make(map[string]usage, len(names))
	for _, name := range names {
		u, known := s.sizes[name]
		if !known {
			layer, err := s.snapshots.Usage(ctx, name)
			if err != nil {
				continue // collected meanwhile
			}
			info, err := s.snapshots.Stat(ctx, name)
			if err != nil {
				continue
			}
			blob, err := blobSize(info.Labels[upperLabel])
			if err != nil && !errors.Is(err, ErrCorrupt) {
				return fmt.Errorf("count layers: %w", err)
			}
			u = usage{layer.Size + blob, layer.Inodes}
		}
		sizes[name] = u
		total.bytes += u.bytes
		total.inodes += u.inodes
	}
	s.sizes = sizes
	s.used.Store(&total)
	return nil
}

// FSInfo tells what images take. It reads no folder: usage is counted when layers come and go.
func (s *Store) FSInfo(context.Context) (FSInfo, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.cfg.Root, &st); err != nil {
		return FSInfo{}, fmt.Errorf("image file system %s: %w", s.cfg.Root, err)
	}
	u := *s.used.Load()
	for _, r := range s.remotes {
		if at := r.used.Load(); at != nil {
			u.bytes, u.inodes = u.bytes+at.bytes, u.inodes+at.inodes
		}
	}
	device, _ := host.BlockDeviceOf(s.cfg.Root)
	return FSInfo{Mountpoint: s.cfg.Root, Device: device, UsedBytes: u.bytes, InodesUsed: u.inodes, CapacityBytes: int64(st.Blocks) * st.Bsize,
		AvailableBytes: int64(st.Bavail) * st.Bsize, Inodes: int64(st.Files), InodesFree: int64(st.Ffree), Timestamp: time.Now()}, nil
}
