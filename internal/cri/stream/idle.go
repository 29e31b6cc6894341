// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"fmt"
	"io"
	"time"
)

// idle ends a session in which nothing is sent. SPDY's library has such a timer, too, but it hangs up without a word, which clients take for
// the end of a command that has succeeded.
type idle struct {
	limit time.Duration
	timer *time.Timer // nil: there is no limit
}

func (m remote) newIdle() *idle {
	i := &idle{limit: m.s.c.IdleTimeout}
	if i.limit > 0 {
		i.timer = time.AfterFunc(i.limit, func() {
			m.end(fmt.Errorf("nothing was sent for %s, as long as [streaming] idle_timeout allows", i.limit))
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
