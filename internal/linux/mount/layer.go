// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Layer is what an overlay can be laid over: an open folder, or a mount that only its layers' holders know.
type Layer struct {
	file *os.File
	// room has the mount at place; nil: it has none.
	room  *Room
	place string
}

// FolderLayer makes an open folder a layer, which closes it.
func FolderLayer(folder *os.File) *Layer { return &Layer{file: folder} }

// ErofsLayer mounts the EROFS file system that is in a regular file (Linux 6.12), read-only, in the room or, without one, nowhere. Nobody sees the mount; it goes with
// the layer, or with the last overlay over it. ENODEV and ENOTBLK: this kernel cannot. EUCLEAN: that is no EROFS, or a damaged one.
func ErofsLayer(file string, room *Room) (*Layer, error) {
	m, err := openEROFS(file)
	if err != nil {
		return nil, err
	}
	l := &Layer{file: m, room: room}
	if room != nil {
		if l.place, err = room.take(m); err != nil {
			return nil, errors.Join(fmt.Errorf("mount EROFS file %s: %w", file, err), m.Close())
		}
	}
	return l, nil
}

// Stat is that of the layer's root.
func (l *Layer) Stat() (os.FileInfo, error) { return l.file.Stat() }

// Path leads to the layer's root in this process, as long as it is not closed.
func (l *Layer) Path() string { return fmt.Sprintf("/proc/self/fd/%d/", l.file.Fd()) }

// Close lets go of the layer. Overlays keep theirs.
func (l *Layer) Close() error {
	var err error
	if l.place != "" {
		err = l.room.drop(l.place)
	}
	return errors.Join(err, l.file.Close())
}

// openEROFS mounts an EROFS file in no mount namespace.
func openEROFS(file string) (*os.File, error) {
	fail := func(what string, err error) (*os.File, error) {
		return nil, fmt.Errorf("mount EROFS file %s: %s: %w", file, what, err)
	}
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("open file system", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", file); err != nil {
		return fail("source", err)
	}
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return fail("ro", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fail("create", err)
	}
	// Flags of a layer are not those of what is mounted over it: set-user-ID and devices work there as ever.
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return fail("mount", err)
	}
	return os.NewFile(uintptr(fd), file), nil
}

// Attach shows a layer that is a mount on target. It has no place afterwards: nothing is to be laid over it.
func (l *Layer) Attach(target string) error {
	if err := attach(l.file, target); err != nil {
		return fmt.Errorf("mount %s on %s: %w", l.file.Name(), target, err)
	}
	return nil
}

func attach(m *os.File, target string) error {
	return unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// cloneLayer is a copy of the mount on which the folder lies, from there on, in no mount namespace; with the owners that ns maps, if that is not nil.
func cloneLayer(dir int, path string, ns *os.File) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return nil, fmt.Errorf("clone mount: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE} // or a copy of a shared mount is one more of its peers
	if ns != nil {
		attr.Attr_set, attr.Userns_fd = unix.MOUNT_ATTR_IDMAP, uint64(ns.Fd())
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("set attributes of mount: %w", err), f.Close())
	}
	return f, nil
}
