// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	copyfs "github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/sysx"
)

// What overlayfs writes into an upper folder besides files (Documentation/filesystems/overlayfs.rst). A container cannot write trusted attributes.
const (
	opaqueAttr   = "trusted.overlay.opaque"
	redirectAttr = "trusted.overlay.redirect"
	metacopyAttr = "trusted.overlay.metacopy"
	// opaqueMark is what the archive's writer makes the whiteout of an opaque folder of.
	opaqueMark = ".wh..opq"
)

// DiffRootfs writes what a container has changed in its root file system as an OCI layer (tar, not compressed), with whiteouts for what it has
// deleted. Nothing may change the container's files meanwhile: it must be frozen, or have ended. Errors: ErrNotFound, ErrUnsupported.
func (s *Store) DiffRootfs(ctx context.Context, id string, w io.Writer) error {
	if !validID(id) {
		return fmt.Errorf("changes of %s: container ID: %w", id, ErrInvalidReference)
	}
	upper := s.WritableFolders(id)[0]
	layer := archive.NewChangeWriter(w, upper)
	err := filepath.WalkDir(upper, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || path == upper {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return change(layer, "/"+path[len(upper)+1:], path, info)
	})
	if err == nil {
		err = layer.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("changes of container %s: %w: %w", id, ErrNotFound, err)
	} else if err != nil {
		return fmt.Errorf("changes of container %s: %w", id, err)
	}
	return nil
}

// change writes one entry of an upper folder.
func change(layer *archive.ChangeWriter, name, path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode()&os.ModeCharDevice != 0 && st.Rdev == 0 {
		return layer.HandleChange(copyfs.ChangeKindDelete, name, nil, nil)
	}
	if info.IsDir() || info.Mode().IsRegular() {
		for _, attr := range []string{redirectAttr, metacopyAttr} {
			if has, err := hasAttr(path, attr); err != nil {
				return err
			} else if has {
				return fmt.Errorf("%s: overlayfs keeps it in another place of the image (%s): %w", name, attr, ErrUnsupported)
			}
		}
	}
	if err := layer.HandleChange(copyfs.ChangeKindAdd, name, info, nil); err != nil || !info.IsDir() {
		return err
	}
	opaque, err := hasAttr(path, opaqueAttr)
	if err != nil || !opaque {
		return err
	}
	return layer.HandleChange(copyfs.ChangeKindDelete, name+"/"+opaqueMark, nil, nil)
}

func hasAttr(path, attr string) (bool, error) {
	_, err := sysx.LGetxattr(path, attr)
	if errors.Is(err, syscall.ENODATA) || errors.Is(err, syscall.ENOTSUP) {
		return false, nil
	}
	return err == nil, err
}
