// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	copyfs "github.com/containerd/continuity/fs"

	"github.com/berth-run/berth/internal/linux/fsys"
)

const volumesName = "volumes"

// FillRequest asks for a container's anonymous volumes.
type FillRequest struct {
	// ID is the container's, Root where its root file system is mounted. No process is in it yet.
	ID, Root string
	// Places are the paths in the root file system that become volumes.
	Places []string
	Owner  *Owner
}

// VolumeFolder is the n-th anonymous volume of a container. It goes with RemoveRootfs.
func (s *Store) VolumeFolder(id string, n int) string {
	return filepath.Join(s.cfg.Rootfs, id, volumesName, strconv.Itoa(n))
}

// FillVolumes makes a container's anonymous volumes, with what the image has at their places: data, owners, modes, attributes and links.
// A place that the image does not have is an empty folder of the container's root's. It is idempotent.
func (s *Store) FillVolumes(ctx context.Context, r FillRequest) error {
	if len(r.Places) == 0 {
		return nil
	}
	if !validID(r.ID) {
		return fmt.Errorf("volumes: container ID %q: %w", r.ID, ErrInvalidReference)
	}
	all := filepath.Join(s.cfg.Rootfs, r.ID, volumesName)
	if err := errors.Join(os.RemoveAll(all), os.Mkdir(all, 0o700)); err != nil {
		return fmt.Errorf("volumes of %s: %w", r.ID, err)
	}
	for i, place := range r.Places {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("volumes of %s: %w", r.ID, err)
		}
		if err := s.fillVolume(s.VolumeFolder(r.ID, i), place, r); err != nil {
			return fmt.Errorf("volume %s of the image: %w", place, err)
		}
	}
	return nil
}

func (s *Store) fillVolume(folder, place string, r FillRequest) error {
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(folder, 0o755); err != nil { // the umask is not to decide
		return err
	}
	source, err := fsys.OpenInRoot(r.Root, place)
	if errors.Is(err, fs.ErrNotExist) {
		if r.Owner == nil {
			return nil
		}
		return os.Chown(folder, r.Owner.UID, r.Owner.GID)
	}
	if err != nil {
		return err
	}
	defer source.Close()
	if info, err := source.Stat(); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("is not a folder in the image: %w", ErrUnsupported), err)
	}
	// The folder that was opened, whatever its path leads to by now.
	return copyfs.CopyDir(folder, fmt.Sprintf("/proc/self/fd/%d/.", source.Fd()))
}
