// SPDX-License-Identifier: Apache-2.0

package fifo

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pipe makes an unnamed pipe for one of a process's standard streams. Our end, the reader if reads, does not block and is registered with the
// runtime's poller. The process's end is a bare descriptor, which the caller closes, and blocks: non-blocking mode belongs to the open
// file, and programs do not expect it on their standard streams. Both are close-on-exec.
func Pipe(reads bool) (ours *os.File, theirs int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, fmt.Errorf("make pipe: %w", err)
	}
	mine, theirs := fds[1], fds[0]
	if reads {
		mine, theirs = theirs, mine
	}
	if err := unix.SetNonblock(mine, true); err != nil {
		unix.Close(mine)
		unix.Close(theirs)
		return nil, -1, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(mine), "pipe"), theirs, nil
}
