// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/linux/userns"
)

// The kernel reads one page of mount options, and an image may have more layers than paths fit into that. So each layer has a link with a
// name of a few characters, as docker does it.

const linkName = "l"

func (s *Store) links() string { return filepath.Join(s.cfg.Root, linkName) }

// link makes links to the folders of layers and returns their names.
func (s *Store) link(dirs []string) ([]string, error) {
	names := make([]string, len(dirs))
	for i, dir := range dirs {
		target, err := filepath.Rel(s.links(), dir)
		if err != nil {
			return nil, err
		}
		id, err := strconv.ParseUint(filepath.Base(filepath.Dir(dir)), 10, 64)
		if err != nil || filepath.Base(dir) != "fs" {
			return nil, fmt.Errorf("layer folder %s: want a number and fs", dir)
		}
		names[i] = strconv.FormatUint(id, 36)
		at := filepath.Join(s.links(), names[i])
		err = os.Symlink(target, at)
		if errors.Is(err, os.ErrExist) {
			var now string
			if now, err = os.Readlink(at); err == nil && now != target {
				err = fmt.Errorf("link %s leads to %s, want %s", at, now, target)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return names, nil
}

// sweepLinks removes links to layers that are gone.
func (s *Store) sweepLinks() error {
	entries, err := os.ReadDir(s.links())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		at := filepath.Join(s.links(), e.Name())
		if _, err := os.Stat(at); errors.Is(err, os.ErrNotExist) {
			errs = append(errs, ignore(os.Remove(at), os.ErrNotExist))
		}
	}
	return errors.Join(errs...)
}

// overlay says how to mount the layers of an image for a root file system, read-only.
func (s *Store) overlay(ctx context.Context, c *chain, of *Rootfs, owner *Owner) (mount.Overlay, error) {
	o := mount.Overlay{Root: s.cfg.Root, Dir: linkName, Layers: slices.Clone(c.links), Room: s.lowers.room, Options: s.options}
	if owner != nil {
		o.UserNS = owner.UserNS
	}
	var err error
	if c.remote != nil {
		o.Mounts, err = s.openRemote(ctx, c)
		of.passing = append(of.passing, o.Mounts...)
		return o, err
	}
	if o.Mounts, err = s.openChain(c); o.Mounts != nil {
		o.Layers = nil
	}
	return o, err
}

// probeOverlay finds out what this kernel's overlayfs takes, with a mount that lasts for a moment.
//
//   - volatile (5.10): unmounting does not wait until the disk has all that the container wrote. Nobody mounts an upper folder
//     again after a power cut.
//   - index=off: or the kernel refuses layers that are shared by two mounts where its default is on.
func (s *Store) probeOverlay() error {
	if err := s.sweepProbes(); err != nil {
		s.log.Warn("unmount what an earlier life has tried", "error", err)
	}
	dir, err := os.MkdirTemp(s.trash(), probePrefix)
	if err != nil {
		return err
	}
	for _, sub := range []string{"lower", "upper", "work", "at"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	layers := []string{"lowerdir=" + filepath.Join(dir, "lower"), "upperdir=" + filepath.Join(dir, "upper"), "workdir=" + filepath.Join(dir, "work")}
	at := filepath.Join(dir, "at")
	for _, options := range [][]string{{"index=off", "volatile"}, {"index=off"}, nil} {
		err = mount.Mount{Type: "overlay", Source: "overlay", Options: append(layers, options...)}.On(at)
		if err == nil {
			s.options = options
			err = mount.Detach(at)
			s.unmapped = probeMapped(dir, options)
			s.openRoom(dir)
			return errors.Join(err, s.chooseForm(dir), os.RemoveAll(dir))
		}
	}
	s.unmapped = err
	if s.cfg.Snapshotter == erofsForm {
		return fmt.Errorf("snapshotter %s: %w", erofsForm, err)
	}
	// Images can be pulled and listed all the same; a container will say what is wrong.
	s.log.Warn("overlayfs cannot be mounted", "error", err)
	return os.RemoveAll(dir)
}

const probePrefix = "probe-"

// sweepProbes unmounts what a daemon that was killed while it tried has left on the host; the folders go with the trash.
func (s *Store) sweepProbes() error {
	all, err := filepath.Glob(filepath.Join(s.trash(), probePrefix+"*", "at*"))
	errs := []error{err}
	for _, at := range all {
		errs = append(errs, mount.DetachOverlay(at))
	}
	return errors.Join(errs...)
}

// probeMapped finds out whether layers can be mapped into a user namespace: since Linux 5.19, where there are such namespaces at all.
func probeMapped(dir string, options []string) error {
	first := userns.Range{Host: 1 << 16, Size: 1 << 16}
	ns, err := userns.Open(userns.Mapping{UIDs: first, GIDs: first})
	if err != nil {
		return err
	}
	defer ns.Close()
	at := filepath.Join(dir, "at")
	// Without an upper folder: one that was mounted volatile cannot be mounted again.
	err = mount.Overlay{Root: dir, Layers: []string{"lower", "work"}, Options: options,
		UserNS: fmt.Sprintf("/proc/self/fd/%d", ns.Fd())}.On(at)
	if err != nil {
		return err
	}
	return mount.DetachOverlay(at)
}

// MappedLayers is nil if root file systems can be for a user namespace (Owner), or says why not.
func (s *Store) MappedLayers() error { return s.unmapped }
