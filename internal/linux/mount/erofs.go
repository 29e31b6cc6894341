// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenEROFS mounts the EROFS file system that is in a regular file (Linux 6.12), read-only and without a place: it is in no mount namespace and
// goes with the file that is returned, or with the last mount over it. ENODEV and ENOTBLK: this kernel cannot. EUCLEAN: that is no EROFS, or a
// damaged one.
func OpenEROFS(file string) (*os.File, error) {
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

// Attach shows a mount that has no place, such as OpenEROFS's, on target as well.
func Attach(m *os.File, target string) error {
	fd, err := unix.OpenTree(int(m.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("clone mount of %s: %w", m.Name(), err)
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.Name(), target, err)
	}
	return nil
}
