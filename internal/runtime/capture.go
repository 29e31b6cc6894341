// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/fifo"
	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shimapi"
)

// maxDrain bounds what is read after the end of a command from a pipe that a background process keeps filling: as much as a pipe can hold, so
// nothing that was written before is lost.
const maxDrain = 1 << 20

// openPipes gives the shim, with the lease of an exec that is about to be started, the pipes that its outputs are to be, and begins to read them. before is nil but with
// a shim that has no use for them.
func (s *Shim) openPipes(ctx context.Context, id string, req ExecRequest) (lease *net.UnixConn, before *relay, stdout, stderr *capture, err error) {
	var captures [2]*capture
	var theirs []int
	defer func() {
		sock.CloseAll(theirs)
		if err != nil {
			for _, c := range captures {
				if c != nil {
					c.close()
				}
			}
		}
	}()
	for i := range captures {
		ours, fd, err := fifo.Pipe(true)
		if err != nil {
			return nil, nil, nil, nil, err
		}
		theirs = append(theirs, fd)
		captures[i] = newCapture(ours, req.Limit)
	}
	lease, tells, err := s.openLease(ctx, func(conn *net.UnixConn) error {
		return shimapi.WritePipesHeader(conn, id, req.ID, theirs[0], theirs[1])
	})
	if err == nil && !tells {
		pipes := theirs
		theirs = nil // they are the relay's
		if before, err = s.newRelay(ctx, id, req.ID, pipes); err != nil {
			lease.Close()
		}
	}
	if err != nil {
		return nil, nil, nil, nil, err
	}
	return lease, before, captures[0], captures[1], nil
}

// capture reads one output pipe to its end and keeps its beginning.
type capture struct {
	pipe  *os.File
	limit int64
	ended chan struct{}

	// To be read once ended is closed.
	kept []byte
	more bool
}

// newCapture starts to read.
func newCapture(pipe *os.File, limit int64) *capture {
	c := &capture{pipe: pipe, limit: limit, ended: make(chan struct{})}
	go c.read()
	return c
}

var captureBuffers = sync.Pool{New: func() any { buffer := make([]byte, 32<<10); return &buffer }}

// read goes on beyond the limit, and drops what it reads: the command must not block on a full pipe.
func (c *capture) read() {
	defer close(c.ended)
	buffer := captureBuffers.Get().(*[]byte)
	defer captureBuffers.Put(buffer)
	for {
		n, err := c.pipe.Read(*buffer)
		c.keep((*buffer)[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.drain(*buffer)
		}
		if err != nil {
			return
		}
	}
}

func (c *capture) keep(p []byte) {
	take := min(int64(len(p)), c.limit-int64(len(c.kept)))
	c.kept = append(c.kept, p[:take]...)
	c.more = c.more || take < int64(len(p))
}

// drain reads what is there, and waits for nothing.
func (c *capture) drain(buffer []byte) {
	conn, err := c.pipe.SyscallConn()
	if err != nil || c.pipe.SetReadDeadline(time.Time{}) != nil { // it is closed
		return
	}
	for total := 0; total < maxDrain; {
		n := 0
		readErr := conn.Read(func(fd uintptr) bool {
			for {
				if n, err = syscall.Read(int(fd), buffer); !errors.Is(err, syscall.EINTR) {
					return true
				}
			}
		})
		if readErr != nil || err != nil || n == 0 {
			return
		}
		c.keep(buffer[:n])
		total += n
	}
}

// finish returns the output once the command has ended: what it wrote is in the pipe. Whoever else holds the pipe is not waited for.
func (c *capture) finish() (output []byte, truncated bool) {
	_ = c.pipe.SetReadDeadline(time.Unix(1, 0)) // of a closed one there is nothing to wait for
	<-c.ended
	return slices.Clip(c.kept), c.more
}

// close hangs up and waits for the reader.
func (c *capture) close() {
	c.pipe.Close()
	<-c.ended
}
