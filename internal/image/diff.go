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
	err := layer.Changes(ctx, s.WritableFolders(id)[0], w)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, layer.ErrElsewhere):
		err = fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("changes of container %s: %w", id, err)
}
