// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

// maxReason bounds the reason in a close message (RFC 6455, 5.5), in bytes.
const maxReason = 123

// offersTunnel tells that the client wants SPDY inside a WebSocket, as kubectl does (KEP-4006).
func offersTunnel(r *http.Request) bool {
	return slices.ContainsFunc(websocket.Subprotocols(r), func(p string) bool { return strings.HasPrefix(p, portforward.WebsocketsSPDYTunnelingPrefix) })
}

// tunnel makes the request a WebSocket and returns the SPDY request that comes through it.
func tunnel(client *session, r *http.Request) (http.ResponseWriter, *http.Request, error) {
	ws, err := upgrade(client, r, []string{portforward.WebsocketsSPDYTunnelingPortForwardV1})
	if err != nil {
		return nil, nil, err
	}
	inner := r.Clone(r.Context())
	inner.Method = http.MethodPost
	inner.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {portforward.ProtocolV1Name}}
	return &tunnelled{conn: &tunnelConn{ws: ws, ctx: client.ctx}, header: http.Header{}}, inner, nil
}

// tunnelled is the answer to the inner request. Both sides know already what it says: the WebSocket's protocol is the agreement.
type tunnelled struct {
	conn   *tunnelConn
	header http.Header
}

func (t *tunnelled) Header() http.Header         { return t.header }
func (t *tunnelled) Write(p []byte) (int, error) { return len(p), nil }
func (t *tunnelled) WriteHeader(int)             {}

// Hijack implements http.Hijacker.
func (t *tunnelled) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}

// tunnelConn is a WebSocket's binary messages as one stream of bytes.
type tunnelConn struct {
	ctx     context.Context
	ws      *websocket.Conn
	message io.Reader // that is being read; nil: none
	mu      sync.Mutex
	once    sync.Once
}

func (c *tunnelConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, message, err := c.ws.NextReader()
			var closed *websocket.CloseError
			switch {
			case errors.As(err, &closed) && closed.Code == websocket.CloseNormalClosure:
				return 0, io.EOF
			case err != nil:
				return 0, err
			case kind != websocket.BinaryMessage:
				return 0, errors.New("tunnelled SPDY: a message is not binary")
			}
			c.message = message
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *tunnelConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *tunnelConn) Close() error {
	var err error
	c.once.Do(func() {
		why := ""
		if cause := context.Cause(c.ctx); cause != nil {
			why = cause.Error()
			why = strings.ToValidUTF8(why[:min(len(why), maxReason)], "")
		}
		end := websocket.FormatCloseMessage(websocket.CloseNormalClosure, why)
		_ = c.ws.WriteControl(websocket.CloseMessage, end, time.Now().Add(time.Second)) // the client may be gone
		err = c.ws.Close()
	})
	return err
}

func (c *tunnelConn) LocalAddr() net.Addr                { return c.ws.LocalAddr() }
func (c *tunnelConn) RemoteAddr() net.Addr               { return c.ws.RemoteAddr() }
func (c *tunnelConn) SetReadDeadline(t time.Time) error  { return c.ws.SetReadDeadline(t) }
func (c *tunnelConn) SetWriteDeadline(t time.Time) error { return c.ws.SetWriteDeadline(t) }
func (c *tunnelConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
