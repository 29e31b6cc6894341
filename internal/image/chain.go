// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	linuxmount "github.com/berth-run/berth/internal/linux/mount"
)

const (
	viewKey = "view-"
	// gcRoot keeps a view, and with it the layers below, from the garbage collector.
	gcRoot = "containerd.io/gc.root"
)

// chain is the unpacked layers of one image, held by a read-only view: asked for once, and not for each container.
type chain struct {
	key     string             // as holdChain has it
	remote  *remoteSnapshotter // has the layers, id of which is their chain ID; folders and links are empty then
	id      string
	folders []string // of the layers, topmost first
	links   []string // their names in the folder of links
	users   int

	mu     sync.Mutex // guards what follows; held while layers are mounted
	lowers []*lower   // open layers, where one of them is an EROFS file
	old    []*lower   // those that were, before one of them was found damaged: containers may be about to mount them
}

// holdChain returns the layers with that chainKey and notes the container as a user.
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
		var err error
		if c, err = s.makeChain(ctx, chainID); err != nil {
			return nil, err
		}
		c.key = chainID
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chains[chainID] = c
	if !slices.Contains(s.users[container], chainID) {
		s.users[container] = append(s.users[container], chainID)
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

// openChain opens the layers of a chain if one of them is an EROFS file; else it gives none, and they are found by their links.
func (s *Store) openChain(c *chain) ([]*linuxmount.Layer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lowers == nil {
		blobs, err := hasBlobs(c.folders)
		if err != nil || !blobs {
			return nil, err
		}
		if c.lowers, err = s.lowers.open(c.folders); err != nil {
			return nil, err
		}
	}
	return layersOf(c.lowers), nil
}

func layersOf(all []*lower) []*linuxmount.Layer {
	layers := make([]*linuxmount.Layer, len(all))
	for i, l := range all {
		layers[i] = l.layer
	}
	return layers
}

// closeChain closes the layers unless a container uses the chain, or has begun to.
func (s *Store) closeChain(c *chain) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.mu.Lock()
	used := c.users > 0
	s.mu.Unlock()
	if used {
		return nil
	}
	all := slices.Concat(c.lowers, c.old)
	c.lowers, c.old = nil, nil
	return s.lowers.close(all)
}

// forgetLayer keeps a damaged layer from containers that are still to come.
func (s *Store) forgetLayer(folder string) {
	s.lowers.forget(folder)
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.chains))
	s.mu.Unlock()
	for _, c := range all {
		if !slices.Contains(c.folders, folder) {
			continue
		}
		c.mu.Lock()
		c.old, c.lowers = append(c.old, c.lowers...), nil
		c.mu.Unlock()
	}
}

// releaseChain drops the view of a chain that neither an image nor a container needs, so that the collector can have its layers.
func (s *Store) releaseChain(ctx context.Context, chainID string) error {
	for _, im := range s.index.Load().byID {
		if im.chainKey() == chainID {
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
	views, id := s.snapshots, chainID
	if r, at, err := s.place(chainID); err != nil {
		return nil // with the snapshotter, if it is ever configured again
	} else if r != nil {
		views, id = r.snapshots, at
	}
	if err := views.Remove(scoped(ctx), viewKey+id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("release layers %s: %w", chainID, err)
	}
	s.collectSoon()
	return nil
}
