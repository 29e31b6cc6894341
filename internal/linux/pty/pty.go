// SPDX-License-Identifier: Apache-2.0

// Package pty makes and sizes terminals. Those of containers are made by the OCI runtime; ours stand for terminals of foreign shims.
package pty

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Size is a terminal's, in characters; the zero one says nothing.
type Size struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// SetSize tells the terminal (and through SIGWINCH its foreground process) its size in characters.
func SetSize(master *os.File, width, height uint16) error {
	return control(master, "resize terminal", func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	})
}

// GetSize reads the terminal's size from either end.
func GetSize(terminal *os.File) (size Size, err error) {
	err = control(terminal, "read terminal's size", func(fd int) error {
		ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil {
			size = Size{ws.Col, ws.Row}
		}
		return err
	})
	return size, err
}

// OpenRaw makes a terminal that passes all bytes on unchanged, and turns none into a signal. Both ends are close-on-exec and do not block.
func OpenRaw() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "master")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("unlock terminal: %w", err)
	}
	// By the master, not by a path: which /dev/pts is mounted does not matter.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK)
	if errno != 0 {
		master.Close()
		return nil, nil, fmt.Errorf("open terminal: %w", errno)
	}
	slave = os.NewFile(peer, "terminal")
	if err := makeRaw(int(peer)); err != nil {
		master.Close()
		slave.Close()
		return nil, nil, fmt.Errorf("make terminal raw: %w", err)
	}
	return master, slave, nil
}

// makeRaw is cfmakeraw(3).
func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// Control makes slave the controlling terminal of the calling process, the leader of a session that has none: the kernel then tells it of new
// sizes by SIGWINCH, and of the end of the last master by SIGHUP.
func Control(slave *os.File) error {
	return control(slave, "make terminal the controlling one", func(fd int) error { return unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0) })
}

func control(terminal *os.File, what string, do func(fd int) error) error {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var failure error
	err = conn.Control(func(fd uintptr) { failure = do(int(fd)) })
	if err == nil {
		err = failure
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
