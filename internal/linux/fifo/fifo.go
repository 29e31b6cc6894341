// SPDX-License-Identifier: Apache-2.0

// Package fifo opens named pipes the way that a process needs which copies a container's streams: without waiting for the other end. For the shim.
package fifo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotFIFO means that something else has the path.
var ErrNotFIFO = errors.New("is not a FIFO")

// Reader opens the FIFO to read from it. Until its first writer has opened it, a read returns nothing, as at the end: see Ended.
func Reader(path string) (*os.File, error) { return open(path, os.O_RDONLY) }

// Writer opens the FIFO to write to it. It holds the other end, too: a write waits for a reader, and finds no pipe broken, when there is none
// for a while.
func Writer(path string) (*os.File, error) { return open(path, os.O_RDWR) }

func open(path string, mode int) (*os.File, error) {
	file, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Mode()&fs.ModeNamedPipe == 0 {
		err = fmt.Errorf("%s: %w", path, ErrNotFIFO)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Ended tells of a FIFO from Reader that its last writer has gone: not so before there was one.
func Ended(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	for {
		_, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err != nil || fds[0].Revents != 0
		}
	}
}
