// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	linuxmount "github.com/berth-run/berth/internal/linux/mount"
)

// makeChain holds layers by a view.
func (s *Store) makeChain(ctx context.Context, key string) (*chain, error) {
	r, chainID, err := s.place(key)
	if err != nil {
		return nil, err
	}
	if r == nil {
		folders, err := s.view(scoped(ctx), chainID)
		if err != nil {
			return nil, err
		}
		c := &chain{folders: folders}
		c.links, err = s.link(folders)
		return c, err
	}
	c := &chain{remote: r, id: chainID}
	if !r.ready.Load() {
		return c, nil // of an earlier life, which has made the view
	}
	_, err = r.view(scoped(ctx), s, chainID)
	return c, err
}

// view makes or finds the view of a chain, and says where the layers are.
func (r *remoteSnapshotter) view(ctx context.Context, s *Store, chainID string) ([]string, error) {
	key := viewKey + chainID
	mounts, err := r.snapshots.View(ctx, key, chainID, snapshots.WithLabels(map[string]string{gcRoot: "in use", ownerLabel: "true"}))
	if errdefs.IsAlreadyExists(err) {
		mounts, err = r.snapshots.Mounts(ctx, key)
	}
	if errdefs.IsNotFound(err) {
		return nil, errors.Join(fmt.Errorf("snapshotter %s has lost the layers: pull the image again: %w: %w", r.Name, ErrCorrupt, err), s.lost(ctx, r, chainID, err))
	}
	if err != nil {
		return nil, err
	}
	folders, err := layerFolders(mounts)
	if err != nil {
		return nil, fmt.Errorf("snapshotter %s: %w", r.Name, err)
	}
	return folders, nil
}

// layerFolders reads the layers' folders, topmost first, out of the mounts of a view. What is mounted over them is Berth's to say.
func layerFolders(mounts []mount.Mount) ([]string, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("offers %d mounts for a view, want one: %w", len(mounts), ErrUnsupported)
	}
	switch m := mounts[0]; m.Type {
	case "bind", "rbind":
		return []string{m.Source}, absolute(m.Source)
	case "overlay":
		for _, o := range m.Options {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				return lowerFolders(dirs)
			}
		}
		return nil, fmt.Errorf("offers an overlay without lower folders: %w", ErrUnsupported)
	default:
		return nil, fmt.Errorf("offers a mount of type %q, want bind or overlay: %w", m.Type, ErrUnsupported)
	}
}

// lowerFolders parts a list of overlayfs, in which a backslash keeps a colon from parting.
func lowerFolders(dirs string) ([]string, error) {
	var all []string
	var one strings.Builder
	for i := 0; i < len(dirs); i++ {
		switch {
		case dirs[i] == '\\' && i+1 < len(dirs):
			i++
			one.WriteByte(dirs[i])
		case dirs[i] == ':':
			all = append(all, one.String())
			one.Reset()
		default:
			one.WriteByte(dirs[i])
		}
	}
	all = append(all, one.String())
	if len(all) > maxLayers+1 {
		return nil, fmt.Errorf("offers %d layers, at most %d can be mounted: %w", len(all), maxLayers+1, ErrUnsupported)
	}
	for _, dir := range all {
		if err := absolute(dir); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func absolute(dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" || strings.ContainsRune(dir, 0) {
		return fmt.Errorf("offers the folder %q for a layer: %w", dir, ErrUnsupported)
	}
	return nil
}

// openRemote opens the layers of a chain where its snapshotter has them now: one that was started again has mounted them anew. They are to be
// closed when the overlay is mounted: what is open cannot be unmounted, and the file system's owner wants to when it is started again.
func (s *Store) openRemote(ctx context.Context, c *chain) ([]*linuxmount.Layer, error) {
	folders, err := c.remote.view(scoped(ctx), s, c.id)
	if err != nil {
		return nil, err
	}
	files, err := c.remote.open(ctx, folders)
	if err != nil {
		return nil, err
	}
	layers := make([]*linuxmount.Layer, len(files))
	for i, f := range files {
		layers[i] = linuxmount.FolderLayer(f)
	}
	return layers, nil
}

func closeFiles(all []*os.File) {
	for _, f := range all {
		f.Close()
	}
}

// open opens folders that may lie on a file system of a process that hangs: the goroutine that does waits, its caller not for long.
func (r *remoteSnapshotter) open(ctx context.Context, folders []string) ([]*os.File, error) {
	if !r.openings.TryAcquire(1) {
		return nil, fmt.Errorf("snapshotter %s: its file systems do not answer: %w", r.Name, ErrSnapshotter)
	}
	type result struct {
		files []*os.File
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer r.openings.Release(1)
		files, err := openFolders(folders)
		done <- result{files, err}
	}()
	abandon := func(err error) ([]*os.File, error) {
		go func() { closeFiles((<-done).files) }()
		return nil, err
	}
	select {
	case got := <-done:
		if got.err != nil {
			return nil, fmt.Errorf("snapshotter %s: layer: %w: %w", r.Name, ErrSnapshotter, got.err)
		}
		return got.files, nil
	case <-time.After(r.Timeout):
		return abandon(fmt.Errorf("snapshotter %s: its file systems do not answer in %s: %w", r.Name, r.Timeout, ErrSnapshotter))
	case <-ctx.Done():
		return abandon(context.Cause(ctx))
	}
}

func openFolders(folders []string) ([]*os.File, error) {
	var files []*os.File
	for _, folder := range folders {
		f, err := os.OpenFile(folder, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
		if err == nil {
			_, err = f.Stat()
			files = append(files, f)
		}
		if err != nil {
			closeFiles(files)
			return nil, err
		}
	}
	return files, nil
}
