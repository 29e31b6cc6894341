// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// idle ends a session in which nothing is sent. SPDY's library has such a timer, too, but it hangs up without a word, which clients take for
// the end of a command that has succeeded.
type idle struct {
	limit time.Duration
	timer *time.Timer // nil: there is no limit
}

// newIdle tells the log, and calls end, whose cause the client hears. what and id are for the log.
func (s *Server) newIdle(end context.CancelCauseFunc, what, id string) *idle {
	i := &idle{limit: s.c.IdleTimeout}
	if i.limit > 0 {
		i.timer = time.AfterFunc(i.limit, func() {
			s.log.Info("an idle streaming session is ended", "session", what, "of", id, "idle", i.limit)
			end(fmt.Errorf("nothing was sent for %s, as long as [streaming] idle_timeout allows", i.limit))
		})
	}
	return i
}

// moved puts the end off.
func (i *idle) moved() {
	if i.timer != nil {
		i.timer.Reset(i.limit)
	}
}

func (i *idle) stop() {
	if i.timer != nil {
		i.timer.Stop()
	}
}

type idleReader struct {
	io.Reader
	idle *idle
}

func (r idleReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.idle.moved()
	}
	return n, err
}

type idleWriter struct {
	io.Writer
	idle *idle
}

func (w idleWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if n > 0 {
		w.idle.moved()
	}
	return n, err
}

// idleWatch lets every byte of the connection that is taken over count, in either direction: a client's pings, too, as in the library.
type idleWatch struct {
	http.ResponseWriter
	idle *idle
}

// Hijack implements http.Hijacker.
func (w idleWatch) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	raw, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	c := idleConn{raw, w.idle}
	return c, bufio.NewReadWriter(bufio.NewReader(idleReader{rw.Reader, w.idle}), bufio.NewWriter(c)), nil
}

type idleConn struct {
	net.Conn
	idle *idle
}

func (c idleConn) Read(p []byte) (int, error)  { return idleReader{c.Conn, c.idle}.Read(p) }
func (c idleConn) Write(p []byte) (int, error) { return idleWriter{c.Conn, c.idle}.Write(p) }
