// SPDX-License-Identifier: Apache-2.0

// Package fsys opens, makes and removes files of a root file system that somebody else wrote. Whatever links and mount tricks an image
// has, nothing outside of its root is reached: every path is resolved by the kernel inside the root (openat2, Linux 5.6). For linux/user
// and everybody else who looks into a rootfs.
package fsys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrTooLarge means that a file has more bytes than its reader is willing to hold.
var ErrTooLarge = errors.New("file is too large")

// OpenInRoot opens path as a process with that root would, for reading; links lead to inside the root only. Only regular files and
// folders are opened: a fifo would block, and opening a device is enough to make some of them act.
func OpenInRoot(root, path string) (*os.File, error) {
	dir, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	found, err := resolve(dir, path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	info, err := found.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return nil, fmt.Errorf("open %s in %s: is a %s, want a file", path, root, info.Mode().Type())
	}
	// The same file is opened, not what is at its path by now.
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(found.Fd())), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open in " + root, Path: path, Err: errors.Unwrap(err)}
	}
	return f, nil
}

// ReadInRoot reads a file of at most limit bytes. ErrTooLarge, fs.ErrNotExist.
func ReadInRoot(root, path string, limit int64) ([]byte, error) {
	f, err := OpenInRoot(root, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, "read "+path+" in "+root, limit)
}

func openRoot(root string) (*os.File, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	return dir, nil
}

// maxTries bounds how often a look-up is repeated that the kernel could not vouch for.
const maxTries = 256

// resolve is openat2 inside of dir. The kernel answers EAGAIN where a path goes through ".." while anything on the machine is renamed or
// mounted, which is always on a busy node: one more try is the documented answer.
func resolve(dir *os.File, path string, flags, mode uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Mode: mode, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	var err error
	for range maxTries {
		var fd int
		if fd, err = unix.Openat2(int(dir.Fd()), path, how); err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return nil, &os.PathError{Op: "open in " + dir.Name(), Path: path, Err: err}
}

// FolderInRoot is where a folder in root really is, links followed inside of the root. The answer is good for as long as nobody changes the root:
// for roots that are read-only. fs.ErrNotExist, ENOTDIR.
func FolderInRoot(root, path string) (string, error) {
	dir, err := openRoot(root)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	if path == "" {
		path = "."
	}
	found, err := resolve(dir, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer found.Close()
	var names [2]string
	for i, f := range []*os.File{dir, found} {
		if names[i], err = os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd()))); err != nil {
			return "", err
		}
	}
	rest, below := strings.CutPrefix(names[1]+"/", names[0]+"/")
	if !below {
		return "", fmt.Errorf("find %s in %s: is %s", path, root, names[1])
	}
	return filepath.Join(root, rest), nil
}
