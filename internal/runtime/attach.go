// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/berth-run/berth/internal/shimapi"
)

// ErrOutputLost: an attached client took no output for so long that the shim gave it up. The container's log has all of it.
var ErrOutputLost = errors.New("the client took no output for too long and was cut off; the container's log has all of it")

// Attach connects the client's streams with those of the running container. It returns nil when the container has ended and the
// client has its output, or when its stdin has ended and keep is set: a client that ends its input then detaches.
// The container outlives the session in any case. A client that reads slowly slows the container down; one that reads nothing is cut
// off (ErrOutputLost) after some seconds, as the container's log must not stand still for it.
func (s *Shim) Attach(ctx context.Context, id string, session Session, keep bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &attachSession{shim: s, id: id, session: session, keep: keep, done: make(chan error, 3)}
	defer a.close()
	err := a.start(ctx)
	if err == nil {
		session.opened()
		err = a.run(ctx)
	}
	return translate("attach to", id, err)
}

type attachSession struct {
	shim    *Shim
	id      string
	session Session
	keep    bool
	conns   []net.Conn
	outputs int
	done    chan error // one for each output; errDetached for stdin
}

var errDetached = errors.New("detached")

func (a *attachSession) close() {
	for _, conn := range a.conns {
		conn.Close()
	}
}

// start connects the outputs first: what the container answers to the input must not be missed.
func (a *attachSession) start(ctx context.Context) error {
	if err := a.output(ctx, shimapi.Stdout, a.session.Stdout); err != nil {
		return err
	}
	if !a.session.TTY {
		if err := a.output(ctx, shimapi.Stderr, a.session.Stderr); err != nil {
			return err
		}
	}
	if a.session.TTY && a.session.Resize != nil {
		go a.shim.passSizes(ctx, a.id, "", a.session.Resize)
	}
	if a.session.Stdin == nil {
		return nil
	}
	conn, err := a.open(ctx, shimapi.Stdin)
	if err != nil {
		return err
	}
	go func() {
		copyInput(conn, a.session.Stdin)
		if a.keep || a.outputs == 0 {
			a.done <- errDetached
		}
	}()
	return nil
}

func (a *attachSession) open(ctx context.Context, stream shimapi.Stream) (*net.UnixConn, error) {
	conn, err := a.shim.openStream(ctx, shimapi.StreamHeader{ID: a.id, Stream: stream})
	if err == nil {
		a.conns = append(a.conns, conn)
	}
	return conn, err
}

func (a *attachSession) output(ctx context.Context, stream shimapi.Stream, to io.Writer) error {
	if to == nil {
		return nil
	}
	conn, err := a.open(ctx, stream)
	if err != nil {
		return err
	}
	a.outputs++
	go func() { a.done <- copyFrames(to, conn) }()
	return nil
}

// copyFrames passes an attached stream on to its orderly end.
func copyFrames(to io.Writer, from io.Reader) error {
	buffer := captureBuffers.Get().(*[]byte)
	defer captureBuffers.Put(buffer)
	in := bufio.NewReaderSize(from, 4<<10)
	for {
		size, err := shimapi.ReadAttachFrame(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		for err == nil && size > 0 {
			var n int
			n, err = in.Read((*buffer)[:min(size, len(*buffer))])
			size -= n
			if _, failure := to.Write((*buffer)[:n]); failure != nil {
				return fmt.Errorf("%w: %w", ErrClientGone, failure)
			}
		}
		if err != nil {
			return fmt.Errorf("%w (%w)", ErrOutputLost, err)
		}
	}
}

// run waits for the end of all outputs, of the input where that counts, or of ctx.
func (a *attachSession) run(ctx context.Context) error {
	for ended := 0; ; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-a.done:
			if errors.Is(err, errDetached) {
				return nil
			}
			if err != nil {
				return err
			}
			if ended++; ended == a.outputs {
				return nil
			}
		}
	}
}
