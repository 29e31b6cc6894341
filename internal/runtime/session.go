// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/containerd/ttrpc"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	"github.com/berth-run/berth/internal/shimapi/task"
)

// Size is that of a terminal, in characters.
type Size struct{ Width, Height uint16 }

// Session is a client's side of an exec or of an attached container. What is nil is not wanted. The session's owner makes
// Stdin's Read and the outputs' Write return when the client is gone; Stdin may still be read from when the session is over.
type Session struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// TTY: the process has a terminal, whose output is Stdout.
	TTY bool
	// Resize tells the terminal's sizes. It is read until it is closed or the session is over.
	Resize <-chan Size
	// Opened, if set, is called once when the streams are connected, and an exec's command is started.
	Opened func()
}

func (s Session) opened() {
	if s.Opened != nil {
		s.Opened()
	}
}

// ErrClientGone: the session's client takes no more output, or has left.
var ErrClientGone = errors.New("the client is gone")

// Exec runs a command in a running container with the client's streams, and returns its exit code once the command has
// ended and the client has all of its output. When ctx ends or the client is gone, the command gets SIGHUP, and soon SIGKILL,
// with all that it started, and the error is the cause. A client that reads slowly slows the command down.
func (s *Shim) Exec(ctx context.Context, id string, process []byte, session Session) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e := &execSession{shim: s, id: id, execID: rand.Text(), session: session, cancel: cancel}
	defer e.close()
	code, err := 0, e.start(ctx, process)
	if err == nil {
		session.opened()
		code, err = e.run(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return code, translate("exec in", id, err)
}

// execSession is one interactive exec. Closing its connections ends the exec and has the shim forget it, for the lease is among them.
type execSession struct {
	shim       *Shim
	id, execID string
	session    Session
	cancel     context.CancelCauseFunc

	conns        []net.Conn
	lease, stdin *net.UnixConn
	tells        bool // the exit comes over the lease
	outputs      sync.WaitGroup
}

func (e *execSession) close() {
	for _, conn := range e.conns {
		conn.Close()
	}
}

// start connects the streams and starts the command. Only so many do it at the same time: each start costs a run of the
// OCI runtime, and the shim holds only so many streams that wait for their exec.
func (e *execSession) start(ctx context.Context, process []byte) error {
	release, err := e.shim.launchSlot(ctx)
	if err != nil {
		return err
	}
	defer release()
	req := &shimpb.ExecRequest{Id: e.id, ExecId: e.execID, Process: process, Lease: true,
		Stdin: e.session.Stdin != nil, Stdout: e.session.Stdout != nil, Stderr: e.session.Stderr != nil && !e.session.TTY}
	e.lease, e.tells, err = e.shim.openLease(ctx, func(conn *net.UnixConn) error {
		return shimapi.WriteStreamHeader(conn, shimapi.StreamHeader{ID: e.id, ExecID: e.execID, Stream: shimapi.Lease, Exit: true})
	})
	if err != nil {
		return err
	}
	e.conns = append(e.conns, e.lease)
	var stdout, stderr *net.UnixConn
	if req.Stdout {
		if stdout, err = e.open(ctx, shimapi.Stdout); err != nil {
			return err
		}
	}
	if req.Stderr {
		if stderr, err = e.open(ctx, shimapi.Stderr); err != nil {
			return err
		}
	}
	if req.Stdin {
		if e.stdin, err = e.open(ctx, shimapi.Stdin); err != nil {
			return err
		}
	}
	err = e.shim.call(ctx, once, func(client *ttrpc.Client) error {
		_, err := shimpb.NewShimClient(client).Exec(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	e.copyOutput(stdout, e.session.Stdout)
	e.copyOutput(stderr, e.session.Stderr)
	return nil
}

func (e *execSession) open(ctx context.Context, stream shimapi.Stream) (*net.UnixConn, error) {
	conn, err := e.shim.openStream(ctx, shimapi.StreamHeader{ID: e.id, ExecID: e.execID, Stream: stream})
	if err == nil {
		e.conns = append(e.conns, conn)
	}
	return conn, err
}

func (e *execSession) copyOutput(from *net.UnixConn, to io.Writer) {
	if from == nil {
		return
	}
	e.outputs.Go(func() {
		if _, err := io.Copy(to, onlyReader{from}); err != nil {
			e.cancel(fmt.Errorf("%w: %w", ErrClientGone, err))
		}
	})
}

// onlyReader hides WriteTo, which would look for a socket behind the writer, and allocate anew in vain.
type onlyReader struct{ io.Reader }

// run passes the streams on until the command has ended and its output is at its end.
func (e *execSession) run(ctx context.Context) (int, error) {
	stop := context.AfterFunc(ctx, e.close)
	defer stop()
	if e.stdin != nil {
		go copyInput(e.stdin, e.session.Stdin) // it ends with the command's stdin, or with the client's
	}
	if e.session.TTY && e.session.Resize != nil {
		go e.shim.passSizes(ctx, e.id, e.execID, e.session.Resize)
	}
	if !e.tells {
		return e.runBefore(ctx)
	}
	code, err := shimapi.ReadExecExit(e.lease)
	if err != nil {
		err = e.lost(ctx)
	}
	e.outputs.Wait()
	return int(code), errors.Join(err, context.Cause(ctx))
}

// errCut: the output has ended, but not where the command has ended it.
var errCut = errors.New("the end of the output is lost, as the container was removed")

// lost tells why the shim has let go of the exec without its exit.
func (e *execSession) lost(ctx context.Context) error {
	if _, err := e.shim.waitExec(ctx, e.id, e.execID); err != nil && !errors.Is(translate("", "", err), ErrNotFound) {
		return err
	}
	return errCut
}

// copyInput passes the client's input on, and its end. Input that the process does not take any more is dropped: behind
// it come a terminal's sizes and the client's own end.
func copyInput(to *net.UnixConn, from io.Reader) {
	if _, err := io.Copy(onlyWriter{to}, from); err == nil {
		_ = to.CloseWrite() // it is closed already if the process has ended
		return
	}
	_, _ = io.Copy(io.Discard, from) // its end is all that was waited for
}

// onlyWriter hides ReadFrom, like onlyReader.
type onlyWriter struct{ io.Writer }

// passSizes sets the terminal's sizes as they come.
func (s *Shim) passSizes(ctx context.Context, id, execID string, sizes <-chan Size) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if err := s.resize(ctx, id, execID, size); err != nil && ctx.Err() == nil {
				s.runtime.log.Debug("resize terminal", "container", id, "exec", execID, "error", err)
			}
		}
	}
}

func (s *Shim) resize(ctx context.Context, id, execID string, size Size) error {
	return s.taskCall(ctx, repeat, "resize terminal of", id, func(c task.TaskService) error {
		_, err := c.ResizePty(ctx, &task.ResizePtyRequest{Id: id, ExecId: execID, Width: uint32(size.Width), Height: uint32(size.Height)})
		return err
	})
}

// maxLaunches bounds the execs of one pod that are being started at the same time.
const maxLaunches = 16

// launchSlot waits until one more exec may be started.
func (s *Shim) launchSlot(ctx context.Context) (release func(), err error) {
	select {
	case s.launches <- struct{}{}:
		s.runtime.moves.Begin(s.runtime.cgroups)
		return func() { <-s.launches }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
