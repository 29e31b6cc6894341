// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Overlay is an overlay file system over layers that lie in one folder. The kernel reads one page of mount options, so their names are short.
type Overlay struct {
	// Root is the folder, on one file system; Layers are names in its folder Dir, topmost first. They may be links to other places in Root.
	Root, Dir string
	Layers    []string
	// Mounts are the layers instead of these, open, topmost first. They stay the caller's.
	Mounts []*Layer
	// Room is where Mounts are laid over each other, for kernels that want that (TakesOpenLayers).
	Room *Room
	// Upper and Work make it writable.
	Upper, Work string
	Options     []string
	// Label is the SELinux label of all its files; empty: each has its own.
	Label string
	// UserNS, if set, is the path of a user namespace: the layers' owners are mapped by it. A file of the layers' root belongs to the
	// namespace's root then. The upper folder is not mapped: what is written there has the host's IDs.
	UserNS string
}

// scratch is the name of the folder beside a target where mapped layers are mounted for a moment, on kernels that want that.
func scratch(target string) string { return target + ".layers" }

// On mounts o on target, which must exist. Errors name both; of an unmappable file system it is EINVAL.
func (o Overlay) On(target string) error { return o.on(target, false) }

// on tries without showing the mapped layers anywhere first (Linux 6.15), unless attach says to do as older kernels need it.
func (o Overlay) on(target string, attach bool) error {
	if len(o.Mounts) > 0 {
		return o.onMounts(target)
	}
	layers, err := o.openLayers()
	if err != nil {
		return err
	}
	defer layers.Close()
	if o.UserNS == "" {
		return o.mount(layers, target)
	}
	if !attach && !layersInPlace.Load() {
		if err = o.mount(layers, target); !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	if err := o.clearAttempt(); err != nil {
		return err
	}
	place := scratch(target)
	if err := os.Mkdir(place, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("mount mapped layers: %w", err)
	}
	if err := unix.MoveMount(int(layers.Fd()), "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(fmt.Errorf("mount mapped layers on %s: %w", place, err), removeScratch(target))
	}
	err = o.mount(layers, target)
	layersInPlace.CompareAndSwap(false, err == nil && !attach)
	if err = errors.Join(err, removeScratch(target)); err != nil {
		err = errors.Join(err, Detach(target))
	}
	return err
}

// layersInPlace: this kernel wants layers to be mounted somewhere, as it was found out.
var layersInPlace atomic.Bool

// clearAttempt takes away what a mount that failed has left: with the option volatile the kernel first marks the work folder, which then counts as one of a
// crash.
func (o Overlay) clearAttempt() error {
	if o.Work == "" {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(o.Work, "work", "incompat")); err != nil {
		return fmt.Errorf("mount overlay: clear the work folder: %w", err)
	}
	return nil
}

func removeScratch(target string) error {
	place := scratch(target)
	if err := Detach(place); err != nil {
		return err
	}
	if err := os.Remove(place); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove place of mapped layers: %w", err)
	}
	return nil
}

// DetachOverlay unmounts what Overlay.On mounted on target, or a crash in the middle of it left. It is idempotent.
func DetachOverlay(target string) error {
	return errors.Join(Detach(target), removeScratch(target))
}

// openLayers opens the folder of layers, of a clone of its mount where owners are mapped.
func (o Overlay) openLayers() (*os.File, error) {
	if o.UserNS == "" {
		return os.OpenFile(o.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	ns, err := os.Open(o.UserNS)
	if err != nil {
		return nil, fmt.Errorf("map owners of layers: %w", err)
	}
	defer ns.Close()
	return CloneMapped(o.Root, ns)
}

// folder opens the folder in which the layers are named.
func (o Overlay) folder(layers *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(layers.Fd()), filepath.Join(".", o.Dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open folder %s of layers: %w", filepath.Join(o.Root, o.Dir), err)
	}
	return os.NewFile(uintptr(fd), o.Dir), nil
}

// mount names the layers by their paths where that fits, else, and where they have none, by the open folder.
func (o Overlay) mount(layers *os.File, target string) error {
	folder, err := o.folder(layers)
	if err != nil {
		return err
	}
	defer folder.Close()
	prefixes := []string{filepath.Join(o.Root, o.Dir), fmt.Sprintf("/proc/self/fd/%d", folder.Fd())}
	if o.UserNS != "" {
		prefixes = prefixes[1:]
	}
	size := 0
	for _, prefix := range prefixes {
		options := o.options(prefix)
		if size = len(strings.Join(options, ",")); size < os.Getpagesize() {
			return Mount{Type: "overlay", Source: "overlay", Options: options}.On(target)
		}
	}
	return fmt.Errorf("mount overlay on %s: the options for %d layers take %d bytes, the kernel reads one page", target, len(o.Layers), size)
}

// Size is what the options take in bytes, unless the process has ten thousand files open.
func (o Overlay) Size() int {
	return min(len(strings.Join(o.options(filepath.Join(o.Root, o.Dir)), ",")), len(strings.Join(o.options("/proc/self/fd/9999"), ",")))
}

func (o Overlay) options(prefix string) []string {
	var lower strings.Builder
	for i, name := range o.Layers {
		if i > 0 {
			lower.WriteByte(':')
		}
		lower.WriteString(filepath.Join(prefix, name))
	}
	options := []string{"lowerdir=" + lower.String()}
	if o.Upper != "" {
		options = append(options, "upperdir="+o.Upper, "workdir="+o.Work)
	} else {
		options = append(options, "ro")
	}
	if o.Label != "" {
		options = append(options, Context(o.Label))
	}
	return append(options, o.Options...)
}

// CloneMapped is a copy of the mount on which dir lies, from dir on and without what is mounted below, that shows other owners: those that the user
// namespace maps. It is in no mount namespace and goes with the file. Linux 5.12, and a file system that can (EINVAL).
func CloneMapped(dir string, ns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone mount of %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("map owners of %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// CanSetRecursively tells whether this kernel changes the flags of mounts and all below at once, which recursive read-only mounts need (Linux 5.12).
func CanSetRecursively() bool {
	return !errors.Is(unix.MountSetattr(-1, "", 0, &unix.MountAttr{}), unix.ENOSYS)
}
