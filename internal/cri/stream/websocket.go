// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/berth-run/berth/internal/runtime"
)

// The channels of the WebSocket protocols (KEP-4006 for version 5). A message begins with its channel's number; in
// the base64 variants with the number as a digit, and the rest is encoded.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
	channelResize = 4
	channelClose  = 255 // version 5: the byte that follows names the channel that is at its end
)

// webSocketProtocols are those of remotecommand, in the order of our preference. Without one it is the oldest.
var webSocketProtocols = []string{"v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"}

const (
	// webSocketBuffer is what is read and written at once.
	webSocketBuffer = 32 << 10
	// controlTime bounds the writing of a control message.
	controlTime = 5 * time.Second
	// pongPace is how often a client whose input nobody reads is told that we are here: client-go hangs up on a server that
	// has not answered its pings for a minute, and its pings are behind the input.
	pongPace = 10 * time.Second
	// maxResize bounds the message that tells a terminal's size.
	maxResize = 1 << 10
)

// upgrade makes it a WebSocket with one of the protocols. The token in the URL is what admits a request, from whatever origin.
func upgrade(client *session, r *http.Request, protocols []string) (*websocket.Conn, error) {
	offered := websocket.Subprotocols(r)
	u := websocket.Upgrader{HandshakeTimeout: headerTimeout, ReadBufferSize: webSocketBuffer, WriteBufferSize: webSocketBuffer + 16,
		Subprotocols: protocols, CheckOrigin: func(*http.Request) bool { return true }}
	for _, p := range protocols {
		for _, o := range offered {
			if p == o {
				return u.Upgrade(client, r, nil)
			}
		}
	}
	if len(offered) > 0 {
		http.Error(client, fmt.Sprintf("none of the WebSocket protocols %.200q is served, but %q", strings.Join(offered, ", "), strings.Join(protocols, ", ")),
			http.StatusBadRequest)
		return nil, fmt.Errorf("no common WebSocket protocol")
	}
	return u.Upgrade(client, r, nil)
}

// serveWebSocket runs an exec or an attach over a WebSocket.
func serveWebSocket(client *session, r *http.Request, m remote) {
	conn, err := upgrade(client, r, webSocketProtocols)
	if err != nil {
		m.s.log.Debug("websocket upgrade", "error", err)
		return
	}
	defer conn.Close()
	protocol := conn.Subprotocol()
	ws := &webSocket{conn: conn, ctx: client.ctx, gone: func(err error) { client.cancel(fmt.Errorf("%w: %w", runtime.ErrClientGone, err)) },
		closes: strings.HasPrefix(protocol, "v5."), status: strings.HasPrefix(protocol, "v5.") || strings.HasPrefix(protocol, "v4."),
		base64: strings.Contains(protocol, "base64."), sizes: make(chan runtime.Size, 1), pongPace: m.s.c.pongPace}
	if m.options.Stdin {
		ws.stdinReader, ws.stdin = io.Pipe()
	}
	go ws.read()
	ws.greet(m)
	err = m.run(ws.input(), ws.output(channelStdout), ws.output(channelStderr), m.options.TTY, ws.sizes)
	if ws.stdinReader != nil {
		ws.stdinReader.Close() // whatever else comes is dropped
	}
	ws.writeStatus(err, m)
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(controlTime))
}

// webSocket is one session's channels.
type webSocket struct {
	conn   *websocket.Conn
	ctx    context.Context
	gone   func(error)
	closes bool // the client can end stdin
	status bool // the end is told as JSON
	base64 bool
	// pongPace is for clients whose input nobody reads.
	pongPace time.Duration

	stdinReader *io.PipeReader
	stdin       *io.PipeWriter // nil: not wanted
	sizes       chan runtime.Size

	mu     sync.Mutex // one message at a time
	buffer []byte
}

func (ws *webSocket) input() io.Reader {
	if ws.stdinReader == nil {
		return nil
	}
	return ws.stdinReader
}

// greet sends an empty message to the first channel that the client reads: old ones wait for it to know that they are connected.
func (ws *webSocket) greet(m remote) {
	channel := byte(channelError)
	switch {
	case m.options.Stdout:
		channel = channelStdout
	case m.options.Stderr:
		channel = channelStderr
	}
	_, _ = ws.output(channel).Write(nil) // a client that is gone shows in the session's context
}

// read takes the client's messages until it is gone. Stdin that nobody reads stops it, and so, in the end, the client.
func (ws *webSocket) read() {
	err := ws.readAll()
	if ws.stdin != nil {
		ws.stdin.CloseWithError(fmt.Errorf("%w: %w", runtime.ErrClientGone, err))
	}
	ws.gone(err)
}

func (ws *webSocket) readAll() error {
	stall := ws.newStall()
	defer stall.end()
	buffer := make([]byte, webSocketBuffer)
	for {
		_, message, err := ws.conn.NextReader()
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(message, buffer[:1]); errors.Is(err, io.EOF) {
			continue // an empty message
		} else if err != nil {
			return err
		}
		channel := buffer[0]
		if ws.base64 {
			channel -= '0'
			message = base64.NewDecoder(base64.StdEncoding, message)
		}
		switch {
		case channel == channelStdin && ws.stdin != nil:
			err = ws.passInput(message, buffer, stall)
		case channel == channelResize:
			ws.resize(message)
		case channel == channelClose && ws.closes:
			err = ws.closeChannel(message)
		}
		if err != nil {
			return err
		}
	}
}

// passInput writes one message to stdin. A stdin that is closed takes it, too: it is dropped.
func (ws *webSocket) passInput(message io.Reader, buffer []byte, stall *stall) error {
	for {
		n, err := message.Read(buffer)
		if n > 0 {
			stall.begin()
			_, _ = ws.stdin.Write(buffer[:n])
			stall.end()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// stall tells the client again and again, unasked, that we are here, as long as its input waits.
type stall struct {
	waits atomic.Bool
	timer *time.Timer
	pace  time.Duration
}

func (ws *webSocket) newStall() *stall {
	s := &stall{pace: ws.pongPace}
	s.timer = time.AfterFunc(time.Hour, func() {
		if !s.waits.Load() {
			return
		}
		if err := ws.conn.WriteControl(websocket.PongMessage, nil, time.Now().Add(controlTime)); err != nil {
			ws.gone(err)
			return
		}
		s.timer.Reset(s.pace)
	})
	s.timer.Stop()
	return s
}

func (s *stall) begin() {
	s.waits.Store(true)
	s.timer.Reset(s.pace)
}

func (s *stall) end() {
	s.waits.Store(false)
	s.timer.Stop()
}

// resize takes a size. Of several that nobody has looked at yet, the last one counts; what is none is no reason to end the session.
func (ws *webSocket) resize(message io.Reader) {
	var size struct{ Width, Height uint16 }
	if err := json.NewDecoder(io.LimitReader(message, maxResize)).Decode(&size); err != nil {
		return
	}
	for {
		select {
		case ws.sizes <- runtime.Size{Width: size.Width, Height: size.Height}:
			return
		default:
		}
		select {
		case <-ws.sizes:
		default:
		}
	}
}

func (ws *webSocket) closeChannel(message io.Reader) error {
	var channel [1]byte
	if _, err := io.ReadFull(message, channel[:]); err != nil {
		return fmt.Errorf("end of a channel without its number: %w", err)
	}
	if channel[0] == channelStdin && ws.stdin != nil {
		ws.stdin.Close()
	}
	return nil
}

// output is a channel to the client.
func (ws *webSocket) output(channel byte) io.WriteCloser { return &webSocketWriter{ws, channel} }

type webSocketWriter struct {
	ws      *webSocket
	channel byte
}

// Write sends p, in messages of one frame each: not every client puts frames together.
func (w *webSocketWriter) Write(p []byte) (int, error) {
	w.ws.mu.Lock()
	defer w.ws.mu.Unlock()
	for sent := 0; ; {
		part := p[sent:min(len(p), sent+webSocketBuffer)]
		if err := w.ws.send(w.channel, part); err != nil {
			return sent, err
		}
		if sent += len(part); sent == len(p) {
			return sent, nil
		}
	}
}

// send writes one message. Preconditions: ws.mu is held.
func (ws *webSocket) send(channel byte, p []byte) error {
	kind := websocket.BinaryMessage
	if ws.base64 {
		kind = websocket.TextMessage
		ws.buffer = base64.StdEncoding.AppendEncode(append(ws.buffer[:0], '0'+channel), p)
	} else {
		ws.buffer = append(append(ws.buffer[:0], channel), p...)
	}
	return ws.conn.WriteMessage(kind, ws.buffer)
}

// Close does nothing: the protocols have no end of a channel in this direction, it comes with the connection's.
func (w *webSocketWriter) Close() error { return nil }

// writeStatus tells how the session ended.
func (ws *webSocket) writeStatus(err error, m remote) {
	if text := statusText(err, m.exec, ws.status); len(text) > 0 {
		_, _ = ws.output(channelError).Write(text) // a client that is gone does not want to know
	}
}
