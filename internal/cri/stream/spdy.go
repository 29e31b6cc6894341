// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/berth-run/berth/internal/runtime"
)

// The library's own handlers (remotecommand.ServeExec, portforward.ServePortForward) wait without end, in the goroutines
// that SPDY needs to read on, for somebody to take a stream that the session has no use for: a client that opens one too many, or
// leaves at the wrong moment, keeps them for ever. So what follows speaks the protocols with the library's connections only.

// spdyProtocols are those of remotecommand: version 4 tells the end as JSON, 3 knows terminal sizes.
var spdyProtocols = []string{remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV3Name, remotecommand.StreamProtocolV2Name}

// spdyStream is a stream that the client has opened.
type spdyStream struct {
	httpstream.Stream
	// replied is closed when the client has been told that the stream is there.
	replied <-chan struct{}
}

// upgradeSPDY takes the connection over and passes on the streams that the client opens and admit lets in. A stream that is not taken
// before ctx ends is refused.
func upgradeSPDY(ctx context.Context, w http.ResponseWriter, r *http.Request, protocols []string, admit func(httpstream.Stream) error) (
	protocol string, conn httpstream.Connection, streams <-chan spdyStream, err error) {
	if protocol, err = httpstream.Handshake(r, w, protocols); err != nil {
		return "", nil, nil, err
	}
	opened := make(chan spdyStream)
	conn = spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
		if err := admit(s); err != nil {
			return err
		}
		select {
		case opened <- spdyStream{s, replied}:
			return nil
		case <-ctx.Done():
			return errors.New("the session is over")
		}
	})
	if conn == nil {
		return "", nil, nil, errors.New("upgrade to SPDY was not possible")
	}
	return protocol, conn, opened, nil
}

// serveSPDY runs an exec or an attach over SPDY.
func serveSPDY(client *session, r *http.Request, m remote) {
	ctx, cancel := context.WithCancel(client.ctx)
	protocol, conn, opened, err := upgradeSPDY(ctx, client, r, spdyProtocols, func(s httpstream.Stream) error { return m.admit(s, true) })
	if err != nil {
		cancel()
		m.s.log.Debug("SPDY upgrade", "error", err)
		return
	}
	defer conn.Close()
	defer cancel() // first: nobody takes streams any more
	go func() {    // a client that says goodbye is not read from any more
		select {
		case <-conn.CloseChan():
			client.cancel(fmt.Errorf("%w: %w", runtime.ErrClientGone, errLeft))
		case <-ctx.Done():
		}
	}()
	streams, err := m.collect(ctx, opened, protocol)
	if err != nil {
		m.s.log.Info("streaming client did not open its streams", "container", m.id, "error", err)
		return
	}
	err = m.run(streams.reader(remotecommand.StreamTypeStdin), streams.writer(remotecommand.StreamTypeStdout), streams.writer(remotecommand.StreamTypeStderr),
		m.options.TTY, sizes(ctx, streams.reader(remotecommand.StreamTypeResize)))
	errorStream := streams[remotecommand.StreamTypeError]
	if text := statusText(err, m.exec, protocol == remotecommand.StreamProtocolV4Name); len(text) > 0 {
		_, _ = errorStream.Write(text) // a client that is gone does not want to know
	}
	errorStream.Close()
}

// wanted are the types of the streams that the client opens.
func (m remote) wanted(resize bool) []string {
	types := []string{remotecommand.StreamTypeError}
	for name, want := range map[string]bool{remotecommand.StreamTypeStdin: m.options.Stdin, remotecommand.StreamTypeStdout: m.options.Stdout,
		remotecommand.StreamTypeStderr: m.options.Stderr, remotecommand.StreamTypeResize: m.options.TTY && resize} {
		if want {
			types = append(types, name)
		}
	}
	return types
}

func (m remote) admit(s httpstream.Stream, resize bool) error {
	if name := s.Headers().Get(remotecommand.StreamType); !slices.Contains(m.wanted(resize), name) {
		return fmt.Errorf("a stream of type %.100q was not asked for", name)
	}
	return nil
}

// spdyStreams are a session's, by type.
type spdyStreams map[string]spdyStream

func (s spdyStreams) reader(name string) io.Reader {
	if stream, ok := s[name]; ok {
		return stream
	}
	return nil
}

func (s spdyStreams) writer(name string) io.WriteCloser {
	if stream, ok := s[name]; ok {
		return stream
	}
	return nil
}

// collect waits for one stream of each wanted type.
func (m remote) collect(ctx context.Context, opened <-chan spdyStream, protocol string) (spdyStreams, error) {
	wanted, streams := m.wanted(protocol != remotecommand.StreamProtocolV2Name), spdyStreams{}
	timer := time.NewTimer(m.s.c.CreationTimeout)
	defer timer.Stop()
	for len(streams) < len(wanted) {
		select {
		case s := <-opened:
			name := s.Headers().Get(remotecommand.StreamType)
			if _, ok := streams[name]; ok || !slices.Contains(wanted, name) {
				return nil, fmt.Errorf("a second stream of type %s", name)
			}
			streams[name] = s
		case <-timer.C:
			return nil, fmt.Errorf("%d of %d streams were opened within %s", len(streams), len(wanted), m.s.c.CreationTimeout)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	for _, s := range streams {
		select {
		case <-s.replied:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return streams, nil
}

// sizes reads a terminal's sizes until the session is over. A client that sends something else is not listened to any more.
func sizes(ctx context.Context, from io.Reader) <-chan runtime.Size {
	if from == nil {
		return nil
	}
	out := make(chan runtime.Size)
	go func() {
		defer close(out)
		in := &rationed{from: from}
		for decoder := json.NewDecoder(in); ; {
			var size struct{ Width, Height uint16 }
			in.left = maxResize
			if decoder.Decode(&size) != nil {
				_, _ = io.Copy(io.Discard, from) // what is not read would stop all streams
				return
			}
			select {
			case out <- runtime.Size{Width: size.Width, Height: size.Height}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// rationed bounds what a decoder reads, and keeps, for one value.
type rationed struct {
	from io.Reader
	left int
}

func (r *rationed) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, errors.New("the value is too long")
	}
	n, err := r.from.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}
