// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/runtime"
)

const (
	// lingerTime is how long a closed connection is read from: closing it with data unread would make the kernel drop
	// what is still on its way to the client, such as the exit code.
	lingerTime = 5 * time.Second
	// lookPace is how often a client is looked at that may have left while nobody reads from it.
	lookPace = 2 * time.Second
)

// session is one request's connection and life. The libraries that speak SPDY and WebSocket take the connection over (Hijack); it
// tells the session when the client is gone, which they do not.
type session struct {
	http.ResponseWriter
	ctx    context.Context // ends with the client, the server, or when the session is over
	cancel context.CancelCauseFunc

	conn *conn // nil: not taken over yet
}

// Hijack implements http.Hijacker.
func (s *session) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	raw, rw, err := http.NewResponseController(s.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	s.conn = newConn(s.ctx, raw, func(err error) { s.cancel(fmt.Errorf("%w: %w", runtime.ErrClientGone, err)) })
	var early []byte // a client may send more than its request before it has our answer
	if n := rw.Reader.Buffered(); n > 0 {
		if early, err = rw.Reader.Peek(n); err != nil {
			return nil, nil, err
		}
	}
	reader := io.MultiReader(bytes.NewReader(bytes.Clone(early)), s.conn)
	return s.conn, bufio.NewReadWriter(bufio.NewReader(reader), bufio.NewWriter(s.conn)), nil
}

// finish ends the session; no library holds its connection any more.
func (s *session) finish() {
	if s.conn != nil {
		s.conn.Close() // first: the end of ctx would cut it off
	}
	s.cancel(nil)
}

// conn is a client's connection. Its end ends the session; its Close lets the client have all that was written.
type conn struct {
	net.Conn
	lost    func(error)
	closing atomic.Bool
	once    sync.Once
	stop    func() bool // of what closes it with the session
	look    *time.Timer
}

var errLeft = errors.New("it closed the connection")

func newConn(ctx context.Context, raw net.Conn, lost func(error)) *conn {
	c := &conn{Conn: raw, lost: lost}
	c.stop = context.AfterFunc(ctx, func() {
		if !errors.Is(context.Cause(ctx), runtime.ErrClientGone) {
			time.Sleep(partTime) // for the last words
		}
		raw.Close()
	})
	c.look = time.AfterFunc(lookPace, c.lookAtClient)
	return c
}

// lookAtClient notices a client's leaving while its input waits to be read. Where more waits than the sockets hold, TCP delivers the client's
// end only after it: then it takes what we send (WebSocket: a pong after pongPace) to hear that nobody is there, or some
// minutes until the client's kernel gives up and keep-alive probes find nobody.
func (c *conn) lookAtClient() {
	if c.closing.Load() {
		return
	}
	if inner, ok := innermost(c.Conn).(syscall.Conn); ok && sock.Ended(inner) {
		c.lost(errLeft)
		return
	}
	c.look.Reset(lookPace)
}

func innermost(c net.Conn) net.Conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if u, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = u.NetConn()
	}
	return c
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.judge(err)
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.judge(err)
	return n, err
}

func (c *conn) judge(err error) {
	if err != nil && !c.closing.Load() {
		if errors.Is(err, io.EOF) {
			err = errLeft
		}
		c.lost(err)
	}
}

// Close sends what is written and the end, and drops what the client still sends, for lingerTime. It does not wait.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.closing.Store(true)
		c.look.Stop()
		if !c.stop() { // the session's end closes it
			return
		}
		go c.linger()
	})
	return nil
}

func (c *conn) linger() {
	defer c.Conn.Close()
	if half, ok := c.Conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	if c.SetDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.Copy(io.Discard, c.Conn) // its end is all that matters
	}
}
