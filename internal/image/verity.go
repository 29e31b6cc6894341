// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/berth-run/berth/internal/linux/verity"
)

// veritySuffix is for the file beside a blob that tells its fs-verity digest, if the kernel guards the blob. It is written before the layer is committed.
const veritySuffix = ".fsverity"

// verityCheck makes sure that the blobs of new layers can be guarded, where the configuration wants that.
func (s *Store) verityCheck() error {
	switch {
	case !s.cfg.FSVerity:
		return nil
	case !s.erofs:
		return errors.New("fs-verity is for layers that are EROFS files, and this store makes none: see images.snapshotter and images.fs_verity")
	}
	if err := verity.Probe(s.cfg.Root); err != nil {
		return fmt.Errorf("images.fs_verity is set, and %s cannot: %w", s.cfg.Root, err)
	}
	return nil
}

// guardBlob has the kernel guard a blob that is complete and closed, and records its digest. A layer that is a folder is left alone.
func (s *Store) guardBlob(blob string) error {
	if !s.cfg.FSVerity {
		return nil
	}
	if _, err := os.Lstat(blob); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := verity.Enable(blob); err != nil {
		return err
	}
	digest, err := verity.Measure(blob)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(blob+veritySuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o400)
	if err != nil {
		return fmt.Errorf("record fs-verity digest: %w", err)
	}
	_, err = f.WriteString(digest)
	if err == nil && !s.cfg.SkipSync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// checkGuard compares a blob that was guarded with what was recorded: one that was put in its place has another digest, or none. It is for each
// mount and costs no read; what the kernel finds wrong when it reads is EIO.
func checkGuard(folder string) error {
	blob := blobOf(folder)
	want, err := os.ReadFile(blob + veritySuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	got, err := verity.Measure(blob)
	switch {
	case errors.Is(err, verity.ErrNone), errors.Is(err, errors.ErrUnsupported):
		return &damagedError{folder, fmt.Errorf("it was guarded by fs-verity and is not any more: %w", err)}
	case err == nil && got != string(want):
		return &damagedError{folder, fmt.Errorf("its fs-verity digest is %s, recorded is %.80q", got, want)}
	}
	return err
}
