// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Device is a device node of the host. Type is "c" or "b".
type Device struct {
	Path, Type   string
	Major, Minor int64
	Mode         uint32
	UID, GID     uint32
}

// ErrNoDevice: there is something at the path, but it is neither a device nor a folder with any.
var ErrNoDevice = errors.New("is no device")

// DeviceOf describes the device at path, following links. It is an error if it is none.
func DeviceOf(path string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Device{}, fmt.Errorf("device %s: %w", path, err)
	}
	d := Device{Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return Device{}, fmt.Errorf("device %s: %w", path, ErrNoDevice)
	}
	return d, nil
}

// BlockDevice is the path of a block device as the kernel names it, "/dev/sda1"; false: there is none of that number.
func BlockDevice(major, minor uint64) (string, bool) {
	to, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return "", false
	}
	return "/dev/" + filepath.Base(to), true
}

// BlockDeviceOf is the block device that the file system with path lies on; false for file systems without one of their own.
func BlockDeviceOf(path string) (string, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", false
	}
	return BlockDevice(uint64(unix.Major(st.Dev)), uint64(unix.Minor(st.Dev)))
}

// Devices lists the host's devices, without terminals and what each container has of its own. It takes well under a millisecond per
// hundred of them: call it when a container is made, since disks come and go.
func Devices() ([]Device, error) {
	return walk("/dev", "/dev/console", "/dev/ptmx", "/dev/pts", "/dev/shm", "/dev/mqueue")
}

// DevicesAt lists the device at path or, where that is a folder as device plugins name it (/dev/snd, /dev/dri), those below it.
func DevicesAt(path string) ([]Device, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", path, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", path, err)
	}
	if !info.IsDir() {
		d, err := DeviceOf(real)
		if errors.Is(err, ErrNoDevice) {
			err = fmt.Errorf("device %s: %w", path, ErrNoDevice)
		}
		d.Path = path
		return []Device{d}, err
	}
	all, err := walk(real)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("device %s: folder without one: %w", path, ErrNoDevice)
	}
	for i := range all { // under the name that was asked for
		all[i].Path = path + all[i].Path[len(real):]
	}
	return all, err
}

// maxDevices bounds what one container is given.
const maxDevices = 32768

// walk lists the devices below root in its own file system: what is mounted there (pts, shm, hugepages) holds none for others. What
// cannot be looked at is left out: it may be unplugged by now, or a dead FUSE mount.
func walk(root string, but ...string) ([]Device, error) {
	var top unix.Stat_t
	if err := unix.Stat(root, &top); err != nil {
		return nil, fmt.Errorf("list devices of %s: %w", root, err)
	}
	var all []Device
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case path == root:
			return err
		case err != nil:
			return fs.SkipDir
		case d.IsDir():
			var st unix.Stat_t
			if unix.Lstat(path, &st) != nil || st.Dev != top.Dev || slices.Contains(but, path) {
				return fs.SkipDir
			}
			return nil
		case d.Type()&fs.ModeDevice == 0 || slices.Contains(but, path):
			return nil
		case len(all) == maxDevices:
			return fmt.Errorf("more than %d", maxDevices)
		}
		if dev, err := DeviceOf(path); err == nil {
			all = append(all, dev)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list devices of %s: %w", root, err)
	}
	return all, nil
}
