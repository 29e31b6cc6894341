// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

const (
	trashName = "trash"
	viewKey   = "view-"
	// gcRoot keeps a view, and with it the layers below, from the garbage collector.
	gcRoot = "containerd.io/gc.root"
)

// chain is the unpacked layers of one image, held by a read-only view: asked for once, and not for each container.
type chain struct {
	links []string // names of the layers in the folder of links, topmost first
	users int
}

// rootfsRecord lies in a container's folder: it tells a later life which layers the container stands on.
type rootfsRecord struct {
	ImageID string `json:"image_id"`
	ChainID string `json:"chain_id"`
}

// PrepareRootfs makes a container's writable layer over its image's layers and says how to mount them. It costs two folders and
// no transaction. The image's layers stay, also when the image is removed, until RemoveRootfs. It is idempotent.
func (s *Store) PrepareRootfs(ctx context.Context, r RootfsRequest) (Rootfs, error) {
	if !validID(r.ID) {
		return Rootfs{}, fmt.Errorf("root file system: container ID %q: %w", r.ID, ErrInvalidReference)
	}
	im, err := s.Status(r.ImageID)
	if err != nil {
		return Rootfs{}, err
	}
	dir := filepath.Join(s.cfg.Rootfs, r.ID)
	c, err := s.holdChain(ctx, im.ChainID, r.ID)
	if err != nil {
		return Rootfs{}, fmt.Errorf("layers of image %s: %w", im.ID, err)
	}
	if err := makeWritable(dir, rootfsRecord{im.ID, im.ChainID}); err != nil {
		return Rootfs{}, errors.Join(fmt.Errorf("root file system of %s: %w", r.ID, err), s.RemoveRootfs(ctx, r.ID))
	}
	options, err := s.mountOptions(c, dir)
	if err != nil {
		return Rootfs{}, errors.Join(fmt.Errorf("root file system of %s: %w", r.ID, err), s.RemoveRootfs(ctx, r.ID))
	}
	return Rootfs{Mounts: []Mount{{Type: "overlay", Source: "overlay", Options: options}}}, nil
}

// WritableLayer is the folder of a container's writable layer, whether there is one or not.
func (s *Store) WritableLayer(id string) string { return filepath.Join(s.cfg.Rootfs, id, "upper") }

func validID(id string) bool {
	return id != "" && len(id) <= 128 && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz-") == ""
}

func makeWritable(dir string, r rootfsRecord) error {
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
	return nil
}

// holdChain returns an image's layers and notes the container as a user.
func (s *Store) holdChain(ctx context.Context, chainID, container string) (*chain, error) {
	// Two containers of one image may come at once; the view is made by one of them.
	if err := s.locks.Lock(ctx, viewKey+chainID); err != nil {
		return nil, err
	}
	defer s.locks.Unlock(viewKey + chainID)
	s.mu.Lock()
	c := s.chains[chainID]
	s.mu.Unlock()
	if c == nil {
		lower, err := s.view(scoped(ctx), chainID)
		if err != nil {
			return nil, err
		}
		c = &chain{}
		if c.links, err = s.link(lower); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chains[chainID] = c
	if _, again := s.users[container]; !again {
		s.users[container] = chainID
		c.users++
	}
	return c, nil
}

// view makes or finds the read-only view of a chain.
func (s *Store) view(ctx context.Context, chainID string) ([]string, error) {
	key := viewKey + chainID
	mounts, err := s.snapshots.View(ctx, key, chainID, snapshots.WithLabels(map[string]string{gcRoot: "in use"}))
	if errdefs.IsAlreadyExists(err) {
		mounts, err = s.snapshots.Mounts(ctx, key)
	}
	if err != nil {
		return nil, err
	}
	return lowerDirs(mounts)
}

// lowerDirs reads the layers' folders out of a view's mounts: a bind of the only one, or an overlay of all.
func lowerDirs(mounts []mount.Mount) ([]string, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("view has %d mounts, want 1", len(mounts))
	}
	m := mounts[0]
	if m.Type == "bind" {
		return []string{m.Source}, nil
	}
	for _, o := range m.Options {
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(dirs, ":"), nil
		}
	}
	return nil, fmt.Errorf("view is a %s without lower folders", m.Type)
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
	chainID, used := s.users[id]
	delete(s.users, id)
	if c := s.chains[chainID]; used && c != nil {
		c.users--
	}
	s.mu.Unlock()
	select {
	case s.trashed <- struct{}{}:
	default: // it will be looked through already
	}
	if !used {
		return nil
	}
	return s.releaseChain(ctx, chainID)
}

// releaseChain drops the view of a chain that neither an image nor a container needs, so that the collector can have its layers.
func (s *Store) releaseChain(ctx context.Context, chainID string) error {
	for _, im := range s.index.Load().byID {
		if im.ChainID == chainID {
			return nil
		}
	}
	if err := s.locks.Lock(ctx, viewKey+chainID); err != nil {
		return err
	}
	defer s.locks.Unlock(viewKey + chainID)
	s.mu.Lock()
	c := s.chains[chainID]
	needed := c != nil && c.users > 0
	if !needed {
		delete(s.chains, chainID)
	}
	s.mu.Unlock()
	if needed {
		return nil
	}
	if err := s.snapshots.Remove(scoped(ctx), viewKey+chainID); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("release layers %s: %w", chainID, err)
	}
	s.collectSoon()
	return nil
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
	for _, id := range ids {
		var r rootfsRecord
		raw, err := os.ReadFile(filepath.Join(s.cfg.Rootfs, id, "image"))
		if err == nil {
			err = json.Unmarshal(raw, &r)
		}
		if err == nil {
			_, err = s.holdChain(ctx, r.ChainID, id)
		}
		if err != nil {
			s.log.Warn("layers of a container are not known; it cannot be started again", "container", id, "error", err)
		}
	}
	var idle []string
	err = s.snapshots.Walk(scoped(ctx), func(_ context.Context, info snapshots.Info) error {
		if chainID, ok := strings.CutPrefix(info.Name, viewKey); ok {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.chains[chainID] == nil {
				idle = append(idle, chainID)
			}
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
