// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/berth-run/berth/internal/linux/mount"
)

const (
	trashName = "trash"
	// emptyName is a folder, among the links, with nothing in it: overlayfs wants two layers where nothing is written.
	emptyName = "_"
)

// rootfsRecord lies in a container's folder: it tells a later life which layers the container stands on.
type rootfsRecord struct {
	ImageID string   `json:"image_id"`
	ChainID string   `json:"chain_id"`          // with the snapshotter, see chainKey
	Volumes []string `json:"volumes,omitempty"` // the same of each
}

// PrepareRootfs makes a container's writable layer over its image's layers and says how to mount them, and its image volumes. It costs
// two folders and no transaction. The images' layers stay, also when an image is removed, until RemoveRootfs. It is idempotent.
func (s *Store) PrepareRootfs(ctx context.Context, r RootfsRequest) (Rootfs, error) {
	if !validID(r.ID) {
		return Rootfs{}, fmt.Errorf("root file system: container ID %q: %w", r.ID, ErrInvalidReference)
	}
	out, err := s.prepareRootfs(ctx, r)
	if err != nil {
		err = errors.Join(err, out.Close())
		var damaged *damagedError
		if errors.As(err, &damaged) {
			err = errors.Join(err, s.quarantine(ctx, damaged.folder, damaged.reason))
		}
		return Rootfs{}, errors.Join(fmt.Errorf("root file system of %s: %w", r.ID, err), s.RemoveRootfs(ctx, r.ID))
	}
	return out, nil
}

func (s *Store) prepareRootfs(ctx context.Context, r RootfsRequest) (out Rootfs, err error) {
	im, c, err := s.holdImage(ctx, r.ImageID, r)
	if err == nil {
		err = im.Runnable()
	}
	if err != nil {
		return out, err
	}
	dir := filepath.Join(s.cfg.Rootfs, r.ID)
	rec := rootfsRecord{ImageID: im.ID, ChainID: c.key}
	if out.Root, err = s.overlay(ctx, c, &out, r.Owner); err != nil {
		return out, err
	}
	out.Root.Upper, out.Root.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, id := range r.VolumeIDs {
		_, c, err := s.holdImage(ctx, id, r)
		if err != nil {
			return out, err
		}
		volume, err := s.overlay(ctx, c, &out, r.Owner)
		if err != nil {
			return out, err
		}
		if volume.Mounts != nil {
			volume.Mounts = append(volume.Mounts, mount.FolderLayer(s.empty))
		} else {
			volume.Layers = append(volume.Layers, emptyName)
		}
		out.Volumes, rec.Volumes = append(out.Volumes, volume), append(rec.Volumes, c.key)
	}
	return out, makeWritable(dir, rec, r.Owner)
}

// holdImage returns an image with the layers that the container's handler wants.
func (s *Store) holdImage(ctx context.Context, id string, r RootfsRequest) (Image, *chain, error) {
	im, err := s.Status(id)
	if err != nil {
		return Image{}, nil, err
	}
	key, err := s.chainIn(ctx, im, s.formOf(r.Handler))
	if err != nil {
		return Image{}, nil, err
	}
	c, err := s.holdChain(ctx, key, r.ID)
	if err != nil {
		return Image{}, nil, fmt.Errorf("layers of image %s: %w", im.ID, err)
	}
	return im, c, nil
}

// WritableFolders are that of a container's writable layer, whether there is one or not, and that of its anonymous volumes, which few have.
func (s *Store) WritableFolders(id string) []string {
	return []string{filepath.Join(s.cfg.Rootfs, id, "upper"), filepath.Join(s.cfg.Rootfs, id, volumesName)}
}

func validID(id string) bool {
	return id != "" && len(id) <= 128 && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz-") == ""
}

func makeWritable(dir string, r rootfsRecord, owner *Owner) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "image"), raw, 0o600); err != nil {
		return err
	}
	for _, sub := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		// The upper folder is the container's "/": everybody in it must be able to enter, whatever the daemon's umask.
		if err := os.Chmod(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	if owner == nil {
		return nil
	}
	return os.Chown(filepath.Join(dir, "upper"), owner.UID, owner.GID)
}

// RemoveRootfs forgets a container's writable layer; it must be unmounted. It is idempotent and returns at once: files are
// deleted in the background.
func (s *Store) RemoveRootfs(ctx context.Context, id string) error {
	if !validID(id) {
		return fmt.Errorf("root file system: container ID %q: %w", id, ErrInvalidReference)
	}
	// Each removal has a name of its own in the trash: an earlier one may still be being deleted.
	err := os.Rename(filepath.Join(s.cfg.Rootfs, id), filepath.Join(s.trash(), id+"."+rand.Text()))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove root file system: %w", err)
	}
	s.mu.Lock()
	chains := s.users[id]
	delete(s.users, id)
	var left []*chain
	for _, chainID := range chains {
		if c := s.chains[chainID]; c != nil {
			c.users--
			left = append(left, c)
		}
	}
	s.mu.Unlock()
	select {
	case s.trashed <- struct{}{}:
	default: // it will be looked through already
	}
	var errs []error
	for _, c := range left {
		errs = append(errs, s.closeChain(c))
	}
	for _, chainID := range chains {
		errs = append(errs, s.releaseChain(ctx, chainID))
	}
	return errors.Join(errs...)
}

// Rootfses lists the containers that have a writable layer.
func (s *Store) Rootfses() ([]string, error) {
	entries, err := os.ReadDir(s.cfg.Rootfs)
	if err != nil {
		return nil, fmt.Errorf("list root file systems: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && validID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// adoptRootfses takes note of the containers of earlier lives, and drops views that nobody needs any more.
func (s *Store) adoptRootfses(ctx context.Context) error {
	ids, err := s.Rootfses()
	if err != nil {
		return err
	}
	// A container may run on layers that cannot be opened now, and on any if nobody knows on which.
	needed, unknown := map[string]bool{}, false
	for _, id := range ids {
		r, err := s.readRecord(id)
		if err != nil {
			unknown = unknown || !errors.Is(err, fs.ErrNotExist) // without a record it has never been mounted
		} else {
			for _, chainID := range append([]string{r.ChainID}, r.Volumes...) {
				needed[chainID] = true
				if err == nil {
					_, err = s.holdChain(ctx, chainID, id)
				}
			}
		}
		if err != nil {
			s.log.Warn("layers of a container are not known; it cannot be started again", "container", id, "error", err)
		}
	}
	if unknown {
		return nil
	}
	return s.releaseIdle(ctx, needed)
}

func (s *Store) readRecord(container string) (r rootfsRecord, err error) {
	raw, err := os.ReadFile(filepath.Join(s.cfg.Rootfs, container, "image"))
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	return r, err
}

// releaseIdle drops the views of chains that no container needs.
func (s *Store) releaseIdle(ctx context.Context, needed map[string]bool) error {
	var idle []string
	err := s.snapshots.Walk(scoped(ctx), func(_ context.Context, info snapshots.Info) error {
		if chainID, ok := strings.CutPrefix(info.Name, viewKey); ok && !needed[chainID] {
			idle = append(idle, chainID)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list layers in use: %w", err)
	}
	for _, chainID := range idle {
		if err := s.releaseChain(ctx, chainID); err != nil {
			return err
		}
	}
	return nil
}
