// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/internal/linux/syncfs"
)

// copyLayer puts the layer that is kept at one snapshot's folder into another's, in a form. The disk has it when it returns.
func (s *Store) copyLayer(ctx context.Context, from, to, form string) error {
	if form == erofsForm {
		err := s.copyToBlob(ctx, from, blobOf(to))
		if err == nil {
			err = os.Chmod(to, noBlob)
		}
		if !errors.Is(err, layer.ErrTooManyFiles) {
			return err
		}
	}
	return s.reading(ctx, from, func(r io.Reader) error {
		_, err := layer.Extract(ctx, to, r)
		if err == nil && !s.cfg.SkipSync {
			err = syncfs.Sync(to)
		}
		return err
	})
}

func (s *Store) copyToBlob(ctx context.Context, from, file string) error {
	return s.reading(ctx, from, func(r io.Reader) (err error) {
		f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer func() {
			if err = errors.Join(err, f.Close()); err != nil {
				err = errors.Join(err, os.Remove(file))
			}
		}()
		b, err := layer.Convert(ctx, f, r)
		if err == nil {
			err = b.Finish(nil)
		}
		if err == nil && !s.cfg.SkipSync {
			err = f.Sync()
		}
		return err
	})
}

// reading gives use the layer at a snapshot's folder, of whatever form, as an archive.
func (s *Store) reading(ctx context.Context, folder string, use func(io.Reader) error) error {
	if err := s.unpacks.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.unpacks.Release(1)
	root, err := openLayer(folder, nil)
	if err != nil {
		return err
	}
	defer root.Close()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := layer.Archive(ctx, root.Path(), w)
		w.CloseWithError(err)
		done <- err
	}()
	err = use(r)
	r.CloseWithError(errAbandoned) // lets the writer end
	if wrote := <-done; wrote != nil && !errors.Is(wrote, errAbandoned) {
		return wrote // the reader's error is but this one's
	}
	return err
}
