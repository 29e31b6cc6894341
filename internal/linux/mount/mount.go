// SPDX-License-Identifier: Apache-2.0

// Package mount is the door to mount(2) for the daemon: what pod needs to set up and to take down a sandbox's
// and a container's mounts. Paths given to it lie in Berth's own state folder; paths inside a rootfs are
// the OCI runtime's and internal/linux/fsys's business.
package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is one mount(2) call; Options are as in fstab, flags and data mixed.
type Mount struct {
	Type, Source string
	Options      []string
}

// Context is the option that gives all files of a mount an SELinux label, which has commas in it.
func Context(label string) string { return `context="` + label + `"` }

var flags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "relatime": unix.MS_RELATIME, "bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC,
	"rw": 0,
}

// On mounts m on target, which must exist. EINVAL, ENOSPC and their kin come with both paths named.
func (m Mount) On(target string) error {
	var flag uintptr
	var data []string
	for _, o := range m.Options {
		if f, ok := flags[o]; ok {
			flag |= f
		} else {
			data = append(data, o)
		}
	}
	joined := strings.Join(data, ",")
	if len(joined) >= os.Getpagesize() {
		return fmt.Errorf("mount %s on %s: options take %d bytes, the kernel reads one page", m.Type, target, len(joined))
	}
	if err := unix.Mount(m.Source, target, m.Type, flag, joined); err != nil {
		return fmt.Errorf("mount %s %s on %s: %w", m.Type, m.Source, target, err)
	}
	if flag&unix.MS_BIND != 0 && flag&unix.MS_RDONLY != 0 { // a bind takes its flags only from a remount
		if err := unix.Mount("", target, "", flag|unix.MS_REMOUNT, ""); err != nil {
			return errors.Join(fmt.Errorf("remount %s read-only: %w", target, err), Detach(target))
		}
	}
	return nil
}

// Detach unmounts everything stacked on target, lazily, so that a busy or hung file system blocks nobody. It is idempotent:
// no such path and not a mount point are success.
func Detach(target string) error {
	for range 64 { // each turn takes one mount off the stack
		switch err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT, unix.ENOTDIR:
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return fmt.Errorf("unmount %s: more than 64 mounts on one another", target)
}

// Below lists the mount points at and under the folder dir, deepest last.
func Below(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	return pointsOf(dir, infos, err)
}

// BelowIn is Below by a table of mounts, as in mountinfo of proc(5).
func BelowIn(table io.Reader, dir string) ([]string, error) {
	infos, err := mountinfo.GetMountsFromReader(table, mountinfo.PrefixFilter(dir))
	return pointsOf(dir, infos, err)
}

func pointsOf(dir string, infos []*mountinfo.Info, err error) ([]string, error) {
	if err != nil {
		return nil, fmt.Errorf("read mounts below %s: %w", dir, err)
	}
	points := make([]string, len(infos))
	for i, m := range infos {
		points[i] = m.Mountpoint
	}
	return points, nil
}

// DetachBelow unmounts all that is mounted at and under dir.
func DetachBelow(dir string) error {
	points, err := Below(dir)
	if err != nil {
		return err
	}
	for i := len(points) - 1; i >= 0; i-- {
		err = errors.Join(err, Detach(points[i]))
	}
	return err
}

// RemoveAll removes the folder dir and all in it, but never crosses into something mounted there: where a mount is
// left it refuses, because removing through a bind mount would delete the user's files.
func RemoveAll(dir string) error {
	points, err := Below(dir)
	if err != nil {
		return err
	}
	if len(points) > 0 {
		return fmt.Errorf("remove %s: %s is still mounted", dir, points[0])
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove folder: %w", err)
	}
	return nil
}
