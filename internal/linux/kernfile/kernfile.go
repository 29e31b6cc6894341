// SPDX-License-Identifier: Apache-2.0

// Package kernfile opens files that the kernel renders, of cgroups and of /proc, past package os: that would have epoll watch each of them, which takes
// as long as all else. Other packages of linux use it where they open many.
package kernfile

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// Open opens a file or, with unix.O_DIRECTORY among the flags, a folder, to be read. The caller closes it. Errors are of type fs.PathError.
func Open(path string, flags int) (fd int, err error) {
	for {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
		default:
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}
