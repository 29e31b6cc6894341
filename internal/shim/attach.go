// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// maxAttached bounds the clients of one stream of a container.
	maxAttached = 64
	// attachPatience is how long a container's output waits for a client that takes none. The client is then given up, with
	// an end that tells it so; the log has all of the output in any case, and goes on.
	attachPatience = 10 * time.Second
	// inputPace is how often a client whose input nobody reads is looked at.
	inputPace = time.Second
)

// attach connects a client to a running container's stream and answers it.
func (s *service) attach(header shimapi.StreamHeader, conn *net.UnixConn) error {
	t, err := s.find(header.ID)
	if err != nil {
		return err
	}
	if err := t.require(running, "attach to"); err != nil {
		return err
	}
	if header.Stream == shimapi.Stdin {
		if t.input == nil {
			return fmt.Errorf("container %s has no stdin: it was created without", t.id)
		}
		return t.input.add(conn)
	}
	output := t.outputs[0]
	if header.Stream == shimapi.Stderr {
		output = t.outputs[1]
	}
	if output == nil {
		return fmt.Errorf("container %s has a terminal and no stderr of its own", t.id)
	}
	return output.add(conn)
}

// broadcast is the sink of a container's output: its log, and whoever is attached. The log comes first. While the container
// runs, it waits for a slow client as it would for a slow terminal, for attachPatience. Once it has ended, the
// rest is kept for the clients (a pipe's content at most), so that the log and the exit wait for nobody.
type broadcast struct {
	log *logStream

	mu      sync.Mutex
	clients []*attached // replaced, never changed
	hurried bool        // no put waits any more
	ended   bool
}

// attached is a client of a broadcast.
type attached struct {
	conn *net.UnixConn
	tail []byte // what is still to be sent after the end; of the pump's goroutine
	gone bool   // of the pump's goroutine
}

func newBroadcast(log *logStream) *broadcast { return &broadcast{log: log} }

// add answers the client before anything can be sent to it, and from then on sends it everything.
func (b *broadcast) add(conn *net.UnixConn) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.clients) >= maxAttached {
		return fmt.Errorf("%d clients are attached already", maxAttached)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if err := shimapi.WriteStreamAnswer(conn, nil); err != nil { // one byte into an empty socket: it does not wait
		return err
	}
	c := &attached{conn: conn}
	if b.ended || b.hurried {
		go c.finish()
		return nil
	}
	b.clients = append(slices.Clip(b.clients), c)
	go b.watch(c)
	return nil
}

// watch notices that a client leaves while the container says nothing. Clients of output send nothing.
func (b *broadcast) watch(c *attached) {
	_, err := c.conn.Read(make([]byte, 1))
	if !errors.Is(err, net.ErrClosed) {
		b.remove(c)
	}
}

func (b *broadcast) put(p []byte) error {
	err := b.log.put(p)
	b.mu.Lock()
	clients := b.clients
	b.mu.Unlock()
	for _, c := range clients {
		if !c.gone {
			b.send(c, p)
		}
		if c.gone {
			b.remove(c)
		}
	}
	return err
}

// send passes p on to one client, or notes what it could not take any more when the process had ended.
func (b *broadcast) send(c *attached, p []byte) {
	header := shimapi.AttachFrameHeader(len(p))
	if b.patient(c) {
		frame := net.Buffers{header[:], p}
		sent, err := frame.WriteTo(c.conn)
		if err == nil {
			return
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !b.isHurried() {
			c.gone = true
			return
		}
		whole := append(slices.Clone(header[:]), p...)
		c.tail = append(c.tail, whole[sent:]...)
		return
	}
	if len(c.tail)+len(p) > maxDrain+bufferSize {
		c.gone = true
		return
	}
	c.tail = append(append(c.tail, header[:]...), p...)
}

// patient sets the time that the client has, or tells that there is none any more.
func (b *broadcast) patient(c *attached) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.hurried && c.conn.SetWriteDeadline(time.Now().Add(attachPatience)) == nil
}

func (b *broadcast) isHurried() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hurried
}

// remove hangs up on a client, without the end that would make it believe that it has got everything.
func (b *broadcast) remove(c *attached) {
	c.conn.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients = slices.DeleteFunc(slices.Clone(b.clients), func(other *attached) bool { return other == c })
	if len(b.clients) == 0 {
		b.clients = nil
	}
}

func (b *broadcast) flush() { b.log.flush() }

// close sends each client its rest and the end, in the background.
func (b *broadcast) close() {
	b.log.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	for _, c := range b.clients {
		go c.finish()
	}
	b.clients = nil
}

// finish sends what is left and the end, as long as the client takes some of it now and then.
func (c *attached) finish() {
	defer c.conn.Close()
	end := shimapi.AttachFrameHeader(0)
	rest := append(c.tail, end[:]...)
	for len(rest) > 0 {
		if c.conn.SetWriteDeadline(time.Now().Add(attachPatience)) != nil {
			return
		}
		n, err := c.conn.Write(rest[:min(len(rest), bufferSize)])
		if err != nil {
			return // without the end: the client knows that it is not all
		}
		rest = rest[n:]
	}
}

func (b *broadcast) hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hurried = true
	for _, c := range b.clients {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0)) // a closed one waits for nobody
	}
}

func (b *broadcast) abort() { b.hurry() }

// input is a container's stdin. Several clients may be attached to it; their writes do not mix within one.
type input struct {
	file *os.File
	end  func()        // called when a client has ended; nil: stdin stays open for the next one
	turn chan struct{} // held by the client that writes
	over chan struct{} // closed by close

	mu      sync.Mutex
	clients int
	closed  bool
}

func newInput(file *os.File, end func()) *input {
	return &input{file: file, end: end, turn: make(chan struct{}, 1), over: make(chan struct{})}
}

// add answers the client and passes on what it sends.
func (in *input) add(conn *net.UnixConn) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed:
		return errors.New("the container's stdin is closed: with stdin_once, by the end of the first client that was attached to it")
	case in.clients >= maxAttached:
		return fmt.Errorf("%d clients are attached already", maxAttached)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if err := shimapi.WriteStreamAnswer(conn, nil); err != nil {
		return err
	}
	in.clients++
	c := &inputClient{in: in, conn: conn, stopped: make(chan struct{})}
	p := startPump(&pump{source: conn, sink: c, last: true})
	go func() {
		select {
		case <-in.over:
			p.stop()
		case <-p.ended:
		}
	}()
	return nil
}

// close ends all clients, and lets no new ones come.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.closed = true
		close(in.over)
	}
}

// inputClient is the sink of one client's input.
type inputClient struct {
	in      *input
	conn    *net.UnixConn
	stopped chan struct{} // closed by abort
	once    sync.Once
}

// put waits for its turn and for the container to read, but not for a client that has left.
func (c *inputClient) put(p []byte) error {
	if err := c.wait(); err != nil {
		return err
	}
	defer func() { <-c.in.turn }()
	for len(p) > 0 {
		if err := c.in.file.SetWriteDeadline(time.Now().Add(inputPace)); err != nil {
			return err
		}
		n, err := c.in.file.Write(p)
		p = p[n:]
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err != nil && c.left() {
			return errLeft
		}
	}
	return nil
}

var errLeft = errors.New("the client has left")

func (c *inputClient) wait() error {
	select {
	case c.in.turn <- struct{}{}:
		return nil
	default:
	}
	tick := time.NewTicker(inputPace)
	defer tick.Stop()
	for {
		select {
		case c.in.turn <- struct{}{}:
			return nil
		case <-c.stopped:
			return errLeft
		case <-tick.C:
			if c.left() {
				return errLeft
			}
		}
	}
}

func (c *inputClient) left() bool {
	select {
	case <-c.stopped:
		return true
	default:
		return sock.HungUp(c.conn)
	}
}

func (c *inputClient) flush() {}
func (c *inputClient) hurry() {}

func (c *inputClient) close() {
	c.in.mu.Lock()
	c.in.clients--
	c.in.mu.Unlock()
	if c.in.end != nil {
		c.in.close()
		c.in.end()
	}
}

func (c *inputClient) abort() { c.once.Do(func() { close(c.stopped) }) }
