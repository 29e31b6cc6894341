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

// newStdio makes pipes, of the owner that the options say, for the wanted streams and /dev/null for the others.
func newStdio(null *os.File, o *wire.CreateOptions, stdin, stdout, stderr bool) (*stdio, error) {
	s := &stdio{child: [3]uintptr{null.Fd(), null.Fd(), null.Fd()}}
	for i, want := range []bool{stdin, stdout, stderr} {
		if !want {
			continue
		}
		reader, writer, err := pipe(i > 0)
		if err == nil && (o.IOUID != 0 || o.IOGID != 0) {
			if err = syscall.Fchown(int(writer), int(o.IOUID), int(o.IOGID)); err != nil { // one inode for both ends
				syscall.Close(int(reader))
				syscall.Close(int(writer))
				err = fmt.Errorf("give pipe to user %d: %w", o.IOUID, err)
			}
		}
		if err != nil {
			s.close()
			return nil, err
		}
		if i == 0 {
			s.stdin = writer.file("stdin")
			s.give(i, reader)
		} else {
			s.output[i-1] = reader.file("output")
			s.give(i, writer)
		}
	}
	return s, nil
}

// newTerminal prepares for the terminal that the runtime makes; dir must be private to us.
func newTerminal(null *os.File, dir, name string) (*stdio, error) {
	tty, err := listenConsole(dir, name)
	if err != nil {
		return nil, err
	}
	return &stdio{child: [3]uintptr{null.Fd(), null.Fd(), null.Fd()}, tty: tty}, nil
}

// pipeEnd is one descriptor of a pipe.
type pipeEnd int

// pipe makes a pipe whose one end, ours, does not block. The process's end must block: non-blocking mode
// belongs to the open file, and programs do not expect it on their standard streams.
func pipe(ours bool) (reader, writer pipeEnd, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return -1, -1, fmt.Errorf("make pipe: %w", err)
	}
	mine := fds[1]
	if ours {
		mine = fds[0]
	}
	if err := syscall.SetNonblock(mine, true); err != nil {
		syscall.Close(fds[0])
		syscall.Close(fds[1])
		return -1, -1, fmt.Errorf("make pipe: %w", err)
	}
	return pipeEnd(fds[0]), pipeEnd(fds[1]), nil
}

func (e pipeEnd) file(name string) *os.File { return os.NewFile(uintptr(e), name) }

func (s *stdio) give(i int, end pipeEnd) {
	s.child[i] = uintptr(end)
	s.owned = append(s.owned, int(end))
}

// started closes the process's ends, so that ours see its end.
func (s *stdio) started() {
	for _, fd := range s.owned {
		syscall.Close(fd)
	}
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
	name, rights := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4*8))
	_, n, _, _, err := conn.ReadMsgUnix(name, rights)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	fds, err := passedFDs(rights[:n])
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			syscall.Close(fd)
		}
		return nil, fmt.Errorf("receive terminal: got %d descriptors", len(fds))
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		syscall.Close(fds[0])
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func passedFDs(control []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, message := range messages {
		fds, err := syscall.ParseUnixRights(&message)
		if errors.Is(err, syscall.EINVAL) { // another kind of message
			continue
		}
		if err != nil {
			return all, err
		}
		all = append(all, fds...)
	}
	return all, nil
}
