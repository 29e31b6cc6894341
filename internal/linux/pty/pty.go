// SPDX-License-Identifier: Apache-2.0

// Package pty sizes the terminals of containers. The terminals themselves are made by the OCI runtime.
package pty

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SetSize tells the terminal (and through SIGWINCH its foreground process) its size in characters.
func SetSize(master *os.File, width, height uint16) error {
	conn, err := master.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	var failure error
	err = conn.Control(func(fd uintptr) {
		failure = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	})
	if err == nil {
		err = failure
	}
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}
