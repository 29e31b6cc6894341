// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
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

func (s *Store) collectGarbage() {
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

// GC deletes what no image, container or pull needs: blobs, layers, writable layers of removed containers.
func (s *Store) GC(ctx context.Context) error {
	var errs []error
	if _, err := s.db.GarbageCollect(scoped(ctx)); err != nil {
		errs = append(errs, fmt.Errorf("images: %w", err))
	}
	trash := filepath.Join(s.cfg.Root, trashName)
	entries, err := os.ReadDir(trash)
	errs = append(errs, err)
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(trash, e.Name())))
	}
	return errors.Join(errs...)
}

// FSInfo tells what images take. It reads no folder: usage was counted when the layers were unpacked.
func (s *Store) FSInfo(context.Context) (FSInfo, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.cfg.Root, &st); err != nil {
		return FSInfo{}, fmt.Errorf("image file system %s: %w", s.cfg.Root, err)
	}
	idx := s.index.Load()
	return FSInfo{Mountpoint: s.cfg.Root, UsedBytes: idx.used.bytes, InodesUsed: idx.used.inodes}, nil
}
