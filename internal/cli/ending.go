// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // deprecated, and what client-go wants
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/transport/spdy"
)

// errLost: the session ended without a word about how, which the library takes for a success.
var errLost = errors.New("the connection to the daemon was lost; what became of the command is not known")

// ending sees whether a server has told how a session ended. Since the protocol's fourth version it does so in every case, on the stream for errors.
type ending struct {
	spdy.Upgrader
	due, told atomic.Bool
}

func (e *ending) lost() bool { return e.due.Load() && !e.told.Load() }

// NewConnection implements spdy.Upgrader.
func (e *ending) NewConnection(r *http.Response) (httpstream.Connection, error) {
	conn, err := e.Upgrader.NewConnection(r)
	if err != nil {
		return nil, err
	}
	protocol := r.Header.Get(httpstream.HeaderProtocolVersion)
	e.due.Store(protocol == "v4.channel.k8s.io" || protocol == "v5.channel.k8s.io")
	return endingConn{conn, e}, nil
}

type endingConn struct {
	httpstream.Connection
	e *ending
}

func (c endingConn) CreateStream(h http.Header) (httpstream.Stream, error) {
	s, err := c.Connection.CreateStream(h)
	if err != nil || h.Get(corev1.StreamType) != corev1.StreamTypeError {
		return s, err
	}
	return endingStream{s, c.e}, nil
}

type endingStream struct {
	httpstream.Stream
	e *ending
}

func (s endingStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if n > 0 {
		s.e.told.Store(true)
	}
	return n, err
}

// lostData is why what was written, or was to be read, is not all there.
type lostData struct{ error }

// outlet is a stream's way out. The library would log a failure to write and go on, so that a copy that was cut off is called a success: it ends the session.
type outlet struct {
	to   io.Writer
	fail context.CancelCauseFunc
}

func (o outlet) Write(p []byte) (int, error) {
	if _, err := o.to.Write(p); err != nil {
		o.fail(lostData{err})
	}
	return len(p), nil
}

// inlet is standard input, of which the library would take an error for the end. It hides all else that a reader can do: a copy from a terminal is to read, nothing else.
type inlet struct {
	from io.Reader
	fail context.CancelCauseFunc
}

func (i inlet) Read(p []byte) (int, error) {
	n, err := i.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		i.fail(lostData{fmt.Errorf("standard input: %w", err)})
		return n, io.EOF
	}
	return n, err
}

// asides gets what the streaming libraries would log by themselves, of which there is one set for the process.
var asides struct {
	once sync.Once
	tell atomic.Pointer[func(text string, err error)]
}

func listenToAsides(tell func(text string, err error)) {
	asides.tell.Store(&tell)
	asides.once.Do(func() {
		utilruntime.ErrorHandlers = []utilruntime.ErrorHandler{func(_ context.Context, err error, text string, _ ...any) { (*asides.tell.Load())(text, err) }}
	})
}
