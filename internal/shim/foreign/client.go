// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
)

const (
	headerSize    = 10
	requestFrame  = 1
	responseFrame = 2
	// maxAnswer is ttrpc's own limit.
	maxAnswer = 4 << 20
)

// errGone: nobody listens, or the connection broke.
var errGone = errors.New("the shim is gone")

// client makes one ttrpc call after the other on one connection.
type client struct {
	conn    net.Conn
	service string
	stream  uint32
}

// dial connects to a shim's address, unix://PATH or an abstract one.
func dial(address string, version int) (*client, error) {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok {
		return nil, fmt.Errorf("shim's address %q is not a unix socket's", address)
	}
	conn, err := net.DialTimeout("unix", path, callLimit)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errGone, err)
	}
	return &client{conn: conn, service: fmt.Sprintf("containerd.task.v%d.Task", version)}, nil
}

func (c *client) close() { c.conn.Close() }

// call waits for the answer for limit; 0: as long as the connection lasts.
func (c *client) call(limit time.Duration, method string, request, answer wire.Message) error {
	deadline := time.Time{}
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("%s: %w: %w", method, errGone, err)
	}
	body := wire.Marshal(&wire.Request{Service: c.service, Method: method, Payload: wire.Marshal(request), TimeoutNano: int64(limit)})
	c.stream += 2
	stream := c.stream - 1
	frame := make([]byte, headerSize, headerSize+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	binary.BigEndian.PutUint32(frame[4:], stream)
	frame[8] = requestFrame
	if _, err := c.conn.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("%s: %w: %w", method, errGone, err)
	}
	if _, err := io.ReadFull(c.conn, frame[:headerSize]); err != nil {
		return c.failed(method, err)
	}
	size := binary.BigEndian.Uint32(frame)
	if size > maxAnswer || frame[8] != responseFrame || binary.BigEndian.Uint32(frame[4:]) != stream {
		return fmt.Errorf("%s: the shim answers garbage", method)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(c.conn, data); err != nil {
		return c.failed(method, err)
	}
	var response wire.Response
	if err := wire.Unmarshal(data, &response); err != nil {
		return fmt.Errorf("%s: the shim answers garbage: %w", method, err)
	}
	if response.Status.Code != 0 {
		return rpc.Errorf(rpc.Code(response.Status.Code), "%s: %s", method, response.Status.Message)
	}
	if err := wire.Unmarshal(response.Payload, answer); err != nil {
		return fmt.Errorf("%s: the shim answers garbage: %w", method, err)
	}
	return nil
}

func (c *client) failed(method string, err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%s: the shim does not answer: %w", method, err)
	}
	return fmt.Errorf("%s: %w: %w", method, errGone, err)
}

func notFound(err error) bool { return rpc.CodeOf(err) == rpc.NotFound }
