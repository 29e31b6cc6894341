// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// onMounts mounts an overlay whose layers are open mounts. They are given one by one (Linux 6.7), so that no page of options bounds them.
func (o Overlay) onMounts(target string, attach bool) (err error) {
	layers, closeLayers, err := o.mapMounts()
	if err != nil {
		return fmt.Errorf("mount overlay on %s: %w", target, err)
	}
	defer closeLayers()
	paths := make([]string, len(layers))
	for i, l := range layers {
		paths[i] = fmt.Sprintf("/proc/self/fd/%d", l.Fd())
	}
	if !attach && !layersInPlace.Load() {
		if err = o.stack(paths, target); !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	if err := o.clearAttempt(); err != nil {
		return err
	}
	// Before Linux 6.15, layers must be mounted somewhere.
	place := scratch(target)
	if err := os.Mkdir(place, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("mount layers: %w", err)
	}
	defer func() {
		if rerr := removeScratch(target); rerr != nil {
			err = errors.Join(err, rerr, Detach(target))
		}
	}()
	if err := (Mount{Type: "tmpfs", Source: "layers", Options: []string{"size=1m", "mode=0700"}}).On(place); err != nil {
		return err
	}
	for i, l := range layers {
		paths[i] = filepath.Join(place, strconv.Itoa(i))
		if err := os.Mkdir(paths[i], 0o700); err != nil {
			return fmt.Errorf("mount layers: %w", err)
		}
		if err := Attach(l, paths[i]); err != nil {
			return err
		}
	}
	err = o.stack(paths, target)
	layersInPlace.CompareAndSwap(false, err == nil && !attach)
	return err
}

// mapMounts are the layers, or copies of them with the owners that the user namespace maps.
func (o Overlay) mapMounts() ([]*os.File, func(), error) {
	if o.UserNS == "" {
		return o.Mounts, func() {}, nil
	}
	var mapped []*os.File
	closeAll := func() {
		for _, f := range mapped {
			f.Close()
		}
	}
	ns, err := os.Open(o.UserNS)
	if err != nil {
		return nil, nil, fmt.Errorf("map owners of layers: %w", err)
	}
	defer ns.Close()
	for _, l := range o.Mounts {
		fd, err := unix.OpenTree(int(l.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("clone mount of %s: %w", l.Name(), err)
		}
		mapped = append(mapped, os.NewFile(uintptr(fd), l.Name()))
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("map owners of %s: %w", l.Name(), err)
		}
	}
	return mapped, closeAll, nil
}

// stack makes the overlay of the folders at paths, topmost first.
func (o Overlay) stack(paths []string, target string) error {
	fail := func(what string, err error) error {
		return fmt.Errorf("mount overlay of %d layers on %s: %s: %w", len(paths), target, what, err)
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("open file system", err)
	}
	defer unix.Close(fd)
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fd, key, value); err != nil {
				err = fail(key, err)
			}
		}
	}
	set("source", "overlay")
	for _, p := range paths {
		set("lowerdir+", p)
	}
	if o.Label != "" {
		set("context", o.Label)
	}
	flags := 0
	if o.Upper != "" {
		set("upperdir", o.Upper)
		set("workdir", o.Work)
	} else {
		flags = unix.MOUNT_ATTR_RDONLY
	}
	for _, option := range o.Options {
		if key, value, ok := strings.Cut(option, "="); ok {
			set(key, value)
		} else if err == nil {
			err = unix.FsconfigSetFlag(fd, key)
		}
	}
	if err != nil {
		return fail("options", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fail("create", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, flags)
	if err != nil {
		return fail("mount", err)
	}
	defer unix.Close(m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail("show", err)
	}
	return nil
}
