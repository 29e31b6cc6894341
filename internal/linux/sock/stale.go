// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

var (
	// ErrServed means that a process listens on the socket.
	ErrServed = errors.New("another process serves it")
	// ErrNoSocket means that something else has the path.
	ErrNoSocket = errors.New("is there already and is not a socket")
)

// ClearStale removes a unix socket that nobody serves any more; none there is fine. Errors: ErrServed, ErrNoSocket, and those of the file system.
// When it cannot be told whether somebody serves it, as with one whose queue is full, it stays and the error says why.
func ClearStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&os.ModeSocket == 0:
		return ErrNoSocket
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return ErrServed
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
