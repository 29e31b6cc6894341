// SPDX-License-Identifier: Apache-2.0

// Package sock asks connections what net does not tell: whether the peer is gone although nobody reads. For the shim and
// for stream, where a writer that waits for somebody else must notice that its own client has left.
package sock

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// HungUp tells that the peer has closed its end altogether, or that the connection has failed. Data that is still to be read
// does not hide it; a peer that only will send nothing more (CloseWrite) has not hung up. A closed connection has.
// On TCP a peer's FIN cannot be told from its Close: see Ended.
func HungUp(conn syscall.Conn) bool { return polled(conn, unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) }

// Ended is HungUp, or that the peer will send nothing more.
func Ended(conn syscall.Conn) bool {
	return polled(conn, unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL)
}

func polled(conn syscall.Conn, events int16) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		for {
			_, err := unix.Poll(fds, 0)
			if err != unix.EINTR {
				gone = err != nil || fds[0].Revents&events != 0
				return
			}
		}
	})
	return gone || err != nil
}
