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
// deleted. owner is the container's user namespace, nil the host's: files belong to whom it sees as their owners. Nothing may change the container's files meanwhile: it must be frozen, or have ended. Errors: ErrNotFound, ErrUnsupported.
func (s *Store) DiffRootfs(ctx context.Context, id string, owner *Owner, w io.Writer) error {
	if !validID(id) {
		return fmt.Errorf("changes of %s: container ID: %w", id, ErrInvalidReference)
	}
	if err := WriteFolder(ctx, s.WritableFolders(id)[0], owner, w); err != nil {
		return fmt.Errorf("changes of container %s: %w", id, err)
	}
	return nil
}

// ApplyRootfs puts changes that DiffRootfs has written into a container's writable layer, which PrepareRootfs has made and nobody has mounted yet. r is read
// to its end. What is there after an error is of no use. Errors: ErrNotFound; ErrCorrupt; those of the disk.
func (s *Store) ApplyRootfs(ctx context.Context, id string, owner *Owner, r io.Reader) error {
	if !validID(id) {
		return fmt.Errorf("changes of %s: container ID: %w", id, ErrInvalidReference)
	}
	if err := ReadFolder(ctx, s.WritableFolders(id)[0], owner, r); err != nil {
		return fmt.Errorf("changes of container %s: %w", id, err)
	}
	return nil
}

// WriteFolder writes the files of a folder, which nobody may change meanwhile, in the form of DiffRootfs, for a user namespace or, with nil, the host.
func WriteFolder(ctx context.Context, folder string, owner *Owner, w io.Writer) error {
	err := layer.Changes(ctx, folder, owner.root(), w)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, layer.ErrElsewhere):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// ReadFolder is ApplyRootfs to any folder that is private to the caller, whiteouts in overlayfs's form.
func ReadFolder(ctx context.Context, folder string, owner *Owner, r io.Reader) error {
	_, err := layer.Apply(ctx, layer.Target{Folder: folder, Overlay: true, Owner: owner.root()}, r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, layer.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// root are the IDs of the owner's root.
func (o *Owner) root() layer.Owner {
	if o == nil {
		return layer.Owner{}
	}
	return layer.Owner{UID: o.UID, GID: o.GID}
}
