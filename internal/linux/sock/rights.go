// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// ErrTooManyFiles means that a message came with more descriptors than are taken.
var ErrTooManyFiles = errors.New("more descriptors than expected came with a message")

// Rights reads from a unix socket and keeps the descriptors that come along (SCM_RIGHTS in unix(7)), close-on-exec.
type Rights struct {
	conn *net.UnixConn
	room []byte
	max  int
	fds  []int
}

// NewRights takes at most so many descriptors, however many reads it takes.
func NewRights(conn *net.UnixConn, most int) *Rights {
	// Room for one more: it tells that there were more.
	return &Rights{conn: conn, max: most, room: make([]byte, unix.CmsgSpace(4*(most+1)))}
}

// Read implements io.Reader. After ErrTooManyFiles no descriptor is left open.
func (r *Rights) Read(p []byte) (int, error) {
	n, control, flags, _, err := r.conn.ReadMsgUnix(p, r.room)
	if errors.Is(err, io.EOF) { // net wraps it here, which no reader expects
		err = io.EOF
	}
	if err != nil || control == 0 {
		return n, err
	}
	fds, err := passed(r.room[:control])
	r.fds = append(r.fds, fds...)
	if err == nil && (flags&unix.MSG_CTRUNC != 0 || len(r.fds) > r.max) {
		err = ErrTooManyFiles
	}
	if err != nil {
		CloseAll(r.Take())
		return 0, err // with bytes, io.ReadFull would take it for success
	}
	return n, nil
}

// passed reads the descriptors out of control messages.
func passed(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("read control message: %w", err)
	}
	var all []int
	for _, message := range messages {
		fds, err := unix.ParseUnixRights(&message)
		if errors.Is(err, unix.EINVAL) { // another kind of message
			continue
		}
		if err != nil {
			return all, fmt.Errorf("read control message: %w", err)
		}
		all = append(all, fds...)
	}
	return all, nil
}

// Take hands over the descriptors that have come, in their order.
func (r *Rights) Take() []int {
	fds := r.fds
	r.fds = nil
	return fds
}

// CloseAll closes bare descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// WriteRights sends p in one message with the descriptors, of which the caller keeps its own.
func WriteRights(conn *net.UnixConn, p []byte, fds ...int) error {
	n, _, err := conn.WriteMsgUnix(p, unix.UnixRights(fds...), nil)
	if err == nil && n < len(p) { // a stream socket may take a part; the descriptors went with its first byte
		_, err = conn.Write(p[n:])
	}
	return err
}
