// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/internal/linux/syncfs"
)

// A layer is kept in one of two forms: as a folder, or as one EROFS file, which takes fewer writes to make and one to remove. Both lie in the
// same snapshots, and an image may have layers of both: which form it is, the file system tells.

// blobName is the file beside a snapshot's folder, where no image can put anything.
const blobName = "layer.erofs"

// blobOf is where the snapshot with that folder has its blob if it has one.
func blobOf(folder string) string { return filepath.Join(filepath.Dir(folder), blobName) }

// noBlob is the mode of the folder beside a blob: a blob that is missing is not taken for an empty layer. No image says the mode of a
// layer's own folder.
const noBlob = 0

// blobSize is 0 for layers that are folders. ErrCorrupt: there was a blob once.
func blobSize(folder string) (int64, error) {
	info, err := os.Lstat(blobOf(folder))
	if err == nil && info.Size() > 0 {
		return info.Size(), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	info, err = os.Lstat(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, &damagedError{folder, errors.New("its folder is lost")}
	} else if err != nil {
		return 0, err
	}
	if info.Mode().Perm() == noBlob {
		return 0, &damagedError{folder, errors.New("its file is lost or empty")}
	}
	return 0, nil
}

// damagedSuffix is for blobs that are out of use. They stay until their layer is made anew or removed.
const damagedSuffix = ".damaged"

// quarantine takes a damaged layer out of use. Its images are not listed any more, so that they are pulled again, which mends them;
// containers that have it mounted keep it, no other gets it.
func (s *Store) quarantine(ctx context.Context, folder string, reason error) error {
	s.log.Error("layer is damaged; pull its images again", "layer", folder, "error", reason)
	if err := os.Rename(blobOf(folder), blobOf(folder)+damagedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("quarantine layer: %w", err)
	}
	s.forgetLayer(folder)
	return s.reread(ctx)
}

// reread makes the index anew, images that were not damaged before included.
func (s *Store) reread(ctx context.Context) error {
	s.refill.Lock()
	clear(s.described)
	s.refill.Unlock()
	return s.refresh(ctx)
}

// whole tells whether a layer that was committed has its content.
func (s *Store) whole(ctx context.Context, chain digest.Digest) error {
	info, err := s.snapshots.Stat(ctx, chain.String())
	if err == nil {
		_, err = blobSize(info.Labels[upperLabel])
	}
	return err
}

// unpacked is a layer in one of the forms, but for what it inherits.
type unpacked struct {
	diffID  digest.Digest
	implied []string
	finish  func(below []layer.Below) error
	close   func() error
}

// unpackInto unpacks a layer into the snapshot with that folder.
func (u *unpacking) unpackInto(ctx context.Context, i int, folder string) (unpacked, error) {
	t, err := u.turn(ctx)
	if err != nil {
		return unpacked{}, err
	}
	defer t.end()
	if a := u.arriving[i]; a != nil {
		a.turn = t
	}
	l, err := u.unpackNow(t.ctx, i, folder)
	if err != nil && t.ctx.Err() != nil {
		err = errors.Join(context.Cause(t.ctx), err)
	}
	return l, err
}

func (u *unpacking) unpackNow(ctx context.Context, i int, folder string) (unpacked, error) {
	if u.erofs() && !u.folders[i] {
		l, err := u.convert(ctx, i, blobOf(folder))
		if err == nil {
			err = os.Chmod(folder, noBlob)
		}
		if !errors.Is(err, layer.ErrTooManyFiles) {
			return l, err
		}
		if u.folders[i] = true; u.arriving[i] != nil {
			return l, err // follow begins anew
		}
		if err := u.fetchAgain(ctx, i); err != nil {
			return unpacked{}, err
		}
	}
	return u.extractTo(ctx, i, folder)
}

func (u *unpacking) extractTo(ctx context.Context, i int, folder string) (unpacked, error) {
	blob, err := u.openSource(ctx, i)
	if err != nil {
		return unpacked{}, err
	}
	defer blob.Close()
	r, err := layer.Extract(ctx, folder, blob)
	if err == nil {
		r.DiffID, err = blob.identify(r.DiffID)
	}
	if err == nil && !u.s.cfg.SkipSync {
		err = syncfs.Sync(folder) // while other layers are fetched and unpacked: at the end there is little left to wait for
	}
	return unpacked{diffID: r.DiffID, implied: r.Implied, close: func() error { return nil },
		finish: func(below []layer.Below) error { return layer.Inherit(folder, r.Implied, below) }}, err
}

func (u *unpacking) convert(ctx context.Context, i int, file string) (_ unpacked, err error) {
	blob, err := u.openSource(ctx, i)
	if err != nil {
		return unpacked{}, err
	}
	defer blob.Close()
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return unpacked{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(file))
		}
	}()
	b, err := layer.Convert(ctx, u.s.flushed(f), blob)
	if err == nil {
		b.DiffID, err = blob.identify(b.DiffID)
	}
	if err == nil && !u.s.cfg.SkipSync {
		err = f.Sync()
	}
	if err != nil {
		return unpacked{}, err
	}
	return unpacked{diffID: b.DiffID, implied: b.Implied, finish: b.Finish, close: f.Close}, nil
}

// finish completes folders that the layer goes into without naming them. The layers below are committed.
func (u *unpacking) finish(ctx context.Context, i int, l unpacked) (err error) {
	var below []layer.Below
	defer func() {
		for _, b := range below {
			err = errors.Join(err, b.Close())
		}
	}()
	for n := i - 1; n >= 0 && len(l.implied) > 0; n-- {
		info, err := u.s.snapshots.Stat(ctx, u.t.chain[n].String())
		if err != nil {
			return err
		}
		b, err := openBelow(info.Labels[upperLabel])
		if err != nil {
			return fmt.Errorf("layer %s below: %w", u.t.diffIDs[n], err)
		}
		below = append(below, b)
	}
	return l.finish(below)
}

func openBelow(folder string) (layer.Below, error) {
	b, err := layer.OpenBlob(blobOf(folder))
	if errors.Is(err, fs.ErrNotExist) {
		return layer.OpenFolder(folder)
	}
	return b, err
}
