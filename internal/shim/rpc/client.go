// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/berth-run/berth/internal/shim/wire"
)

// ErrGone: nobody listens, or the connection broke.
var ErrGone = errors.New("the server is gone")

// Client makes one call after the other on one connection.
type Client struct {
	conn   net.Conn
	stream uint32
}

// Dial connects to a unix socket, an abstract one with @ in front. ErrGone.
func Dial(path string, limit time.Duration) (*Client, error) {
	conn, err := net.DialTimeout("unix", path, limit)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	return &Client{conn: conn}, nil
}

// Close hangs up.
func (c *Client) Close() { c.conn.Close() }

// Call waits for the answer for limit; 0: as long as the connection lasts. The answer is an Error, or ErrGone, or one after which the connection is of no
// use any more.
func (c *Client) Call(limit time.Duration, service, method string, request, answer wire.Message) error {
	deadline := time.Time{}
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("%s: %w: %w", method, ErrGone, err)
	}
	body := wire.Marshal(&wire.Request{Service: service, Method: method, Payload: wire.Marshal(request), TimeoutNano: int64(limit)})
	c.stream += 2
	stream := c.stream - 1
	frame := make([]byte, headerSize, headerSize+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	binary.BigEndian.PutUint32(frame[4:], stream)
	frame[8] = requestFrame
	if _, err := c.conn.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("%s: %w: %w", method, ErrGone, err)
	}
	if _, err := io.ReadFull(c.conn, frame[:headerSize]); err != nil {
		return c.failed(method, err)
	}
	size := binary.BigEndian.Uint32(frame)
	if size > maxMessage || frame[8] != responseFrame || binary.BigEndian.Uint32(frame[4:]) != stream {
		return fmt.Errorf("%s: the server answers garbage", method)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(c.conn, data); err != nil {
		return c.failed(method, err)
	}
	var response wire.Response
	if err := wire.Unmarshal(data, &response); err != nil {
		return fmt.Errorf("%s: the server answers garbage: %w", method, err)
	}
	if response.Status.Code != 0 {
		return Errorf(Code(response.Status.Code), "%s: %s", method, response.Status.Message)
	}
	if err := wire.Unmarshal(response.Payload, answer); err != nil {
		return fmt.Errorf("%s: the server answers garbage: %w", method, err)
	}
	return nil
}

func (c *Client) failed(method string, err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%s: the server does not answer: %w", method, err)
	}
	return fmt.Errorf("%s: %w: %w", method, ErrGone, err)
}
