// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/kernfile"
)

// Descriptors counts a process's open files, and those of them that are sockets. At most limit of them are looked at: a process may have
// millions. fs.ErrNotExist: it is gone.
func Descriptors(pid, limit int) (files, sockets int, err error) {
	dir, err := kernfile.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_DIRECTORY)
	if err != nil {
		return 0, 0, fmt.Errorf("count descriptors: %w", err)
	}
	defer unix.Close(dir)
	var names []string
	entries, to := make([]byte, 4096), make([]byte, len("socket:"))
	for files < limit {
		n, err := unix.ReadDirent(dir, entries)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && !gone(err):
			return files, sockets, fmt.Errorf("count descriptors of process %d: %w", pid, err)
		case err != nil, n == 0:
			return files, sockets, nil
		}
		_, _, names = unix.ParseDirent(entries[:n], -1, names[:0])
		for _, name := range names[:min(len(names), limit-files)] {
			files++
			if n, err := unix.Readlinkat(dir, name, to); err == nil && string(to[:n]) == "socket:" {
				sockets++
			}
		}
	}
	return files, sockets, nil
}

// MaxOpenFiles is a process's soft limit of open files.
func MaxOpenFiles(pid int) (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files of process %d: %w", pid, err)
	}
	return limit.Cur, nil
}

// ReserveDescriptors makes this process's table of descriptors large enough for n of them, which takes the kernel 8 bytes each. A table that grows
// when a file is opened has whoever opens it wait for an RCU grace period, ten milliseconds or more, at each power of two; this waits for one of them.
func ReserveDescriptors(n int) error {
	fd, err := unix.FcntlInt(uintptr(unix.Stdin), unix.F_DUPFD_CLOEXEC, n-1)
	if err != nil {
		return fmt.Errorf("reserve %d descriptors: %w", n, err)
	}
	return unix.Close(fd)
}
