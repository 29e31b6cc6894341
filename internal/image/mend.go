// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/image/layer"
)

// freshSuffix is for what is made anew beside what was lost, until it is whole.
const freshSuffix = ".new"

// mend makes a lost layer anew in the snapshot that is there. Who has the old one mounted keeps it.
func (u *unpacking) mend(ctx context.Context, i int) error {
	folder, err := u.s.folderOf(ctx, u.t.chain[i].String())
	if err != nil {
		return err
	}
	lost, err := u.s.restoreSnapshot(folder)
	if err != nil {
		return err
	}
	if !lost || u.erofs() {
		err = u.mendBlob(ctx, i, folder)
		if !lost || !errors.Is(err, layer.ErrTooManyFiles) {
			return err
		}
		if err := u.fetchAgain(ctx, i); err != nil {
			return err
		}
	}
	return u.mendFolder(ctx, i, folder)
}

// restoreSnapshot makes the place of a snapshot that is lost as a whole, and tells whether it was.
func (*Store) restoreSnapshot(folder string) (lost bool, err error) {
	if _, err := os.Lstat(folder); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.MkdirAll(filepath.Dir(folder), 0o700)
}

func (u *unpacking) mendBlob(ctx context.Context, i int, folder string) error {
	return u.s.replaceBlob(folder, func(fresh string) error {
		l, err := u.convert(ctx, i, fresh)
		if err != nil {
			return err
		}
		return u.settle(ctx, i, l)
	})
}

func (u *unpacking) mendFolder(ctx context.Context, i int, folder string) error {
	return replaceFolder(folder, func(fresh string) error {
		l, err := u.extractTo(ctx, i, fresh)
		if err != nil {
			return err
		}
		return u.settle(ctx, i, l)
	})
}

// replaceFolder has fill make what is to be in the place of a folder that is lost.
func replaceFolder(folder string, fill func(fresh string) error) error {
	fresh := folder + freshSuffix
	if err := errors.Join(os.RemoveAll(fresh), os.Mkdir(fresh, 0o755)); err != nil {
		return err
	}
	err := fill(fresh)
	if err == nil {
		err = os.Rename(fresh, folder)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	return nil
}

// settle checks an unpacked layer, takes over what it inherits, and closes it.
func (u *unpacking) settle(ctx context.Context, i int, l unpacked) error {
	err := u.sameContent(i, l)
	if err == nil {
		err = u.waitBelow(ctx, i)
	}
	if err == nil {
		err = u.finish(ctx, i, l)
	}
	return errors.Join(err, l.close())
}

// replaceBlob has fill make the blob that is to be in the place of a lost one, guarded or not as the configuration is now. What tells the guard comes
// first: a crash in between leaves a layer that is not listed, and is made anew.
func (s *Store) replaceBlob(folder string, fill func(fresh string) error) error {
	blob := blobOf(folder)
	fresh := blob + freshSuffix
	if err := ignore(os.Remove(fresh), fs.ErrNotExist); err != nil {
		return err
	}
	if err := fill(fresh); err != nil {
		return errors.Join(err, ignore(os.Remove(fresh), fs.ErrNotExist))
	}
	if err := s.guardBlob(fresh); err != nil {
		return err
	}
	if err := ignore(os.Mkdir(folder, noBlob), fs.ErrExist); err != nil {
		return err
	}
	err := os.Rename(fresh+veritySuffix, blob+veritySuffix)
	if errors.Is(err, fs.ErrNotExist) {
		err = ignore(os.Remove(blob+veritySuffix), fs.ErrNotExist)
	}
	if err == nil {
		err = os.Rename(fresh, blob)
	}
	if err != nil {
		return err
	}
	s.forgetLayer(folder)
	return ignore(os.Remove(blob+damagedSuffix), fs.ErrNotExist)
}
