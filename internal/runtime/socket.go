// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// maxSocketPath is what fits into a sockaddr_un with its final zero.
	maxSocketPath = 107
	// writeLimit bounds how long a shim that reads nothing can hold up a caller, whose context does not end a write.
	writeLimit = 10 * time.Second
	// backlogPace is how often a connection is tried while the shim's backlog is full.
	backlogPace = 10 * time.Millisecond
)

// withAddress calls use with an address of the socket: its path, or one through a descriptor of its folder
// where the path is longer than the kernel takes.
func withAddress(path string, use func(address string) error) error {
	if len(path) <= maxSocketPath {
		return use(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

// listen makes a listening socket, in place of a stale one. The file is returned rather than the listener, as it
// is for another process; closing it leaves the socket's path.
func listen(path string) (file *os.File, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	err = withAddress(path, func(address string) error {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
		if err != nil {
			return err
		}
		listener.SetUnlinkOnClose(false)
		file, err = listener.File()
		return errors.Join(err, listener.Close())
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// dial connects to a shim's socket. ErrShimGone if nobody listens there; a full backlog is waited out until
// ctx ends.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	for {
		var conn net.Conn
		err := withAddress(path, func(address string) (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, "unix", address)
			return err
		})
		switch {
		case err == nil:
			return conn.(*net.UnixConn), nil
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("connect to %s: %w", path, ErrShimGone)
		case errors.Is(err, context.DeadlineExceeded): // the dialer's own timer can be first
			return nil, fmt.Errorf("connect to %s: the shim accepts no connection: %w", path, context.DeadlineExceeded)
		case !errors.Is(err, syscall.EAGAIN):
			return nil, fmt.Errorf("connect to %s: %w", path, err)
		}
		if !pause(ctx, backlogPace) {
			return nil, fmt.Errorf("connect to %s: the shim accepts no connection: %w", path, ctx.Err())
		}
	}
}

// steadyConn closes itself when a write fails or takes too long: half a message would garble all that follow.
type steadyConn struct{ net.Conn }

func (c steadyConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err == nil {
		err = c.SetWriteDeadline(time.Time{}) // else an idle daemon would wake up for it
	}
	if err != nil {
		c.Close()
	}
	return n, err
}

// pause waits, but not longer than ctx lives; it tells whether ctx still does.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
