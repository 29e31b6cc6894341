// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// AppendBeneath opens the regular file at path below folder to append to it, and makes it where it is missing; its own folder must exist. The last part of
// folder, and all parts of path, may be no symbolic links: who writes there must not choose the file. Errors: fs.ErrNotExist; ELOOP for a
// link, ENOTDIR for one in folder's place, EXDEV for a path that leads out.
func AppendBeneath(folder, path string, perm os.FileMode) (*os.File, error) {
	dir, err := os.OpenFile(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	whole := filepath.Join(folder, path)
	// O_NONBLOCK: a fifo in the file's place must not hang us. It changes nothing for files.
	how := &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Mode: uint64(perm.Perm()), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	var fd int
	for range maxTries { // the kernel cannot vouch for ".." while anything is renamed; see resolve
		if fd, err = unix.Openat2(int(dir.Fd()), path, how); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: whole, Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("not a regular file")
	}
	if err == nil {
		err = unix.SetNonblock(fd, false) // else the Go runtime would hold it in its poller
	}
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "open", Path: whole, Err: err}, closeFD(fd))
	}
	return os.NewFile(uintptr(fd), whole), nil
}

func closeFD(fd int) error {
	if err := unix.Close(fd); err != nil {
		return &os.PathError{Op: "close", Path: strconv.Itoa(fd), Err: err}
	}
	return nil
}
