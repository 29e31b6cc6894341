// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/fifo"
	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shim/wire"
)

// stdio is a process's standard streams: the ends that the OCI runtime passes on to the process, and ours.
type stdio struct {
	child [3]uintptr // of the process
	owned []int      // those of child to close once the process has them

	stdin  *os.File    // nil: /dev/null or a terminal
	output [2]*os.File // stdout, stderr; nil: /dev/null or a terminal
	tty    *console    // nil: no terminal
}

// newStdio makes pipes, of the owner that the options say, for the wanted streams and /dev/null for the others. Outputs that the client has brought
// are the process's stdout and stderr; they are closed with s.
func newStdio(null *os.File, o *wire.CreateOptions, stdin, stdout, stderr bool, brought []int) (*stdio, error) {
	s := &stdio{child: [3]uintptr{null.Fd(), null.Fd(), null.Fd()}}
	for i, fd := range brought {
		s.give(i+1, fd)
	}
	if len(brought) > 0 {
		stdout, stderr = false, false
	}
	for i, want := range []bool{stdin, stdout, stderr} {
		if !want {
			continue
		}
		ours, theirs, err := fifo.Pipe(i > 0)
		if err != nil {
			s.close()
			return nil, err
		}
		if i == 0 {
			s.stdin = ours
		} else {
			s.output[i-1] = ours
		}
		s.give(i, theirs)
	}
	if err := s.own(int(o.IOUID), int(o.IOGID)); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// own gives the process's pipes to a user: each end has the same inode.
func (s *stdio) own(uid, gid int) error {
	if uid == 0 && gid == 0 {
		return nil
	}
	for _, fd := range s.owned {
		if err := syscall.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("give pipe to user %d: %w", uid, err)
		}
	}
	return nil
}

// newTerminal prepares for the terminal that the runtime makes; dir must be private to us.
func newTerminal(null *os.File, dir, name string) (*stdio, error) {
	tty, err := listenConsole(dir, name)
	if err != nil {
		return nil, err
	}
	return &stdio{child: [3]uintptr{null.Fd(), null.Fd(), null.Fd()}, tty: tty}, nil
}

func (s *stdio) give(i, fd int) {
	s.child[i] = uintptr(fd)
	s.owned = append(s.owned, fd)
}

// started closes the process's ends, so that ours see its end.
func (s *stdio) started() {
	sock.CloseAll(s.owned)
	s.owned = nil
}

// close is for a process that did not come to be, before its pumps exist.
func (s *stdio) close() {
	s.started()
	if s.stdin != nil {
		s.stdin.Close()
	}
	for _, file := range s.output {
		if file != nil {
			file.Close()
		}
	}
	if s.tty != nil {
		s.tty.close()
	}
}

// console is the socket over which the OCI runtime hands over the master of a process's terminal.
type console struct {
	dir      *os.File
	name     string
	listener *net.UnixListener
}

// listenConsole makes the socket in dir, whose path is longer than a socket's address may be: hence the
// detour through /proc.
func listenConsole(dir, name string) (*console, error) {
	folder, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	address := filepath.Join("/proc/self/fd", strconv.Itoa(int(folder.Fd())), name)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		folder.Close()
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	return &console{dir: folder, name: name, listener: listener}, nil
}

// address is the socket's for a program that has dir as descriptor fd.
func (c *console) address(fd int) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(fd), c.name)
}

// close removes the socket (the listener unlinks its address).
func (c *console) close() {
	c.listener.Close()
	c.dir.Close()
}

// consoleWait is how long to wait for the terminal once the runtime has ended: it is there by then.
const consoleWait = 5 * time.Second

// receive takes the terminal. The runtime has already sent it.
func (c *console) receive() (*os.File, error) {
	deadline := time.Now().Add(consoleWait)
	if err := c.listener.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	rights := sock.NewRights(conn, 1)
	if _, err := rights.Read(make([]byte, 4096)); err != nil { // its name
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	fds := rights.Take()
	if len(fds) == 0 {
		return nil, errors.New("receive terminal: no descriptor came")
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		sock.CloseAll(fds)
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
