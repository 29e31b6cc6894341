// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects to a TCP address as seen from inside the network namespace pinned at path; an empty path is the daemon's own.
// Only the socket is made inside: nobody waits there for the other side.
func Dial(ctx context.Context, path string, address netip.AddrPort) (net.Conn, error) {
	if path == "" {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address.String())
		if err != nil {
			return nil, err // it names the operation and the address
		}
		return conn, nil
	}
	conn, err := dialInside(ctx, path, address)
	if err != nil {
		return nil, fmt.Errorf("dial tcp %s: %w", address, err)
	}
	return conn, nil
}

func dialInside(ctx context.Context, path string, address netip.AddrPort) (net.Conn, error) {
	family, target := sockaddr(address)
	var socket *os.File
	err := Do(path, func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		socket = os.NewFile(uintptr(fd), "tcp")
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer socket.Close() // the connection has a copy
	stop := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := connect(socket, target); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return net.FileConn(socket)
}

func sockaddr(address netip.AddrPort) (family int, target unix.Sockaddr) {
	if a := address.Addr().Unmap(); a.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4(), Port: int(address.Port())}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: address.Addr().As16(), Port: int(address.Port())}
}

// connect begins to connect and waits in Go's poller for the outcome.
func connect(socket *os.File, target unix.Sockaddr) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	begun := false
	var failure error
	err = raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			failure = unix.Connect(int(fd), target)
			return failure != unix.EINPROGRESS && failure != unix.EINTR
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			failure = err
		case code != 0:
			failure = unix.Errno(code)
		default:
			// A wake-up without an outcome: whether there is a peer tells.
			_, failure = unix.Getpeername(int(fd))
			if failure == unix.ENOTCONN {
				return false
			}
		}
		return true
	})
	if err == nil {
		err = os.NewSyscallError("connect", failure)
	}
	return err
}
