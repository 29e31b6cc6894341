// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Descriptors counts a process's open files, and those of them that are sockets. At most limit of them are looked at: a process may have
// millions. fs.ErrNotExist: it is gone.
func Descriptors(pid, limit int) (files, sockets int, err error) {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return 0, 0, fmt.Errorf("count descriptors: %w", err)
	}
	defer dir.Close()
	fd, to := int(dir.Fd()), make([]byte, len("socket:"))
	for files < limit {
		names, err := dir.Readdirnames(min(512, limit-files))
		for _, name := range names {
			files++
			if n, err := unix.Readlinkat(fd, name, to); err == nil && strings.HasPrefix(string(to[:n]), "socket:") {
				sockets++
			}
		}
		if errors.Is(err, io.EOF) || gone(err) {
			break
		} else if err != nil {
			return files, sockets, fmt.Errorf("count descriptors of process %d: %w", pid, err)
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
