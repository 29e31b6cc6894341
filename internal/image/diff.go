// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/berth-run/berth/internal/image/layer"
)

// DiffRootfs writes what a container has changed in its root file system as an OCI layer (tar, not compressed), with whiteouts for what it has
// deleted. Nothing may change the container's files meanwhile: it must be frozen, or have ended. Errors: ErrNotFound, ErrUnsupported.
func (s *Store) DiffRootfs(ctx context.Context, id string, w io.Writer) error {
	if !validID(id) {
		return fmt.Errorf("changes of %s: container ID: %w", id, ErrInvalidReference)
	}
	if err := WriteFolder(ctx, s.WritableFolders(id)[0], w); err != nil {
		return fmt.Errorf("changes of container %s: %w", id, err)
	}
	return nil
}

// ApplyRootfs puts changes that DiffRootfs has written into a container's writable layer, which PrepareRootfs has made and nobody has mounted yet. r is read
// to its end. What is there after an error is of no use. Errors: ErrNotFound; ErrCorrupt; those of the disk.
func (s *Store) ApplyRootfs(ctx context.Context, id string, r io.Reader) error {
	if !validID(id) {
		return fmt.Errorf("changes of %s: container ID: %w", id, ErrInvalidReference)
	}
	if err := ReadFolder(ctx, s.WritableFolders(id)[0], r); err != nil {
		return fmt.Errorf("changes of container %s: %w", id, err)
	}
	return nil
}

// WriteFolder writes the files of a folder, which nobody may change meanwhile, in the form of DiffRootfs.
func WriteFolder(ctx context.Context, folder string, w io.Writer) error {
	err := layer.Changes(ctx, folder, w)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, layer.ErrElsewhere):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// ReadFolder is ApplyRootfs to any folder that is private to the caller, whiteouts in overlayfs's form.
func ReadFolder(ctx context.Context, folder string, r io.Reader) error {
	_, err := layer.Extract(ctx, folder, r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, layer.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}
