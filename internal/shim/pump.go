// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/fifo"
	"github.com/berth-run/berth/internal/linux/sock"
)

const (
	// maxDrain bounds what is read after a process's exit from a pipe that a background process keeps
	// filling: more than a pipe can hold, so nothing that was written before the exit is lost.
	maxDrain = 1 << 20
	// ttyDrain is how long a terminal may take to pass on its last output: the kernel moves it to the
	// master in a work queue, so "nothing to read" does not mean that nothing comes.
	ttyDrain = 100 * time.Millisecond
)

// source is one end of a pipe, a terminal or a connection, registered with the runtime's poller.
type source interface {
	syscall.Conn
	io.Closer
	SetReadDeadline(time.Time) error
}

// end is a client's end of one of a process's streams: a connection to the stdio socket, or what containerd has named.
type end interface {
	source
	io.Writer
	SetWriteDeadline(time.Time) error
}

// sink takes what a pump reads. All but hurry and abort are called by the pump's goroutine.
type sink interface {
	// put takes all of p. An error ends the pump.
	put(p []byte) error
	// flush passes on what is held back.
	flush()
	close()
	// hurry is told, from another goroutine, when the process has ended: from then on put must not wait for any reader.
	// It may come after close.
	hurry()
	// abort makes a put that waits return; it, too, comes from another goroutine, and maybe after close.
	abort()
}

// pump copies from source to sink. It holds a buffer only while there is something to read.
//
//	reading ── end of file, error, stop ──────────────────────→ ended
//	   └── drain: read all that is there, then close quiet ──┬─→ ended      (last)
//	                                                         └─→ reading    (!last)
type pump struct {
	source source
	sink   sink
	tty    bool // source is the master of a terminal
	last   bool // end after drain; otherwise go on as long as anybody holds the other end
	fifo   bool // source is a FIFO: it has not ended before it has had a writer

	stopped atomic.Bool
	quiet   chan struct{} // closed when all that was there at drain is in the sink
	ended   chan struct{} // closed when source and sink are closed
	cut     bool          // it was stopped; to be read once ended is closed

	// What step and read tell each other: reading allocates nothing, however much there is to read.
	tryRead func(fd uintptr) bool
	wait    bool
	buffer  *[bufferSize]byte
	size    int
	failure error
}

// startPump runs a pump whose source, sink, tty and last are set.
func startPump(p *pump) *pump {
	p.quiet, p.ended = make(chan struct{}), make(chan struct{})
	p.tryRead = p.read
	go p.run()
	return p
}

// drain tells the pump that the process has ended. It may be called once.
func (p *pump) drain() {
	p.sink.hurry()
	p.wake()
}

// stop ends the pump without waiting for it.
func (p *pump) stop() {
	p.stopped.Store(true)
	p.wake()
	p.sink.abort()
}

// wake interrupts a read; on a closed source there is none.
func (p *pump) wake() { _ = p.source.SetReadDeadline(time.Unix(1, 0)) }

// settled waits until all is in the sink that was written before drain, or limit is closed.
func (p *pump) settled(limit <-chan struct{}) {
	select {
	case <-p.quiet:
	case <-p.ended:
	case <-limit:
	}
}

// passedOn waits for the end of the outputs among the pumps, and tells whether the sinks have all that there was.
func passedOn(pumps []*pump) bool {
	for _, p := range pumps {
		if _, ok := p.sink.(*stdinSink); ok {
			continue
		}
		if <-p.ended; p.cut {
			return false
		}
	}
	return true
}

func (p *pump) run() {
	defer close(p.ended)
	defer p.source.Close()
	defer p.sink.close()
	defer func() { p.cut = p.stopped.Load() }()
	conn, err := p.source.SyscallConn()
	if err != nil {
		return
	}
	drained := false
	for {
		_, err := p.step(conn, true)
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || p.source.SetReadDeadline(time.Time{}) != nil || p.stopped.Load() {
			return
		}
		if !drained {
			drained = true
			err = p.empty(conn)
			p.sink.flush()
			if err != nil || p.last || p.stopped.Load() {
				return
			}
			close(p.quiet)
		}
	}
}

// empty reads what is there. An error means that the source is at its end.
func (p *pump) empty(conn syscall.RawConn) error {
	if p.tty {
		return p.emptyTerminal(conn)
	}
	for total := 0; total < maxDrain && !p.stopped.Load(); {
		n, err := p.step(conn, false)
		if errors.Is(err, syscall.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		total += n
	}
	return nil
}

func (p *pump) emptyTerminal(conn syscall.RawConn) error {
	for total, left := 0, ttyDrain; total < maxDrain && !p.stopped.Load(); total += p.size {
		begin := time.Now()
		if err := p.source.SetReadDeadline(begin.Add(left)); err != nil {
			return err
		}
		err := p.next(conn, true)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		left -= time.Since(begin) // the sink may take as long as it wants
		if err == nil {
			err = p.hand()
		}
		if err != nil {
			return err
		}
	}
	return p.source.SetReadDeadline(time.Time{})
}

// step reads once and hands on.
func (p *pump) step(conn syscall.RawConn, wait bool) (int, error) {
	if err := p.next(conn, wait); err != nil {
		return 0, err
	}
	return p.size, p.hand()
}

// next reads once. When nothing is there it waits, or returns EAGAIN. Without an error hand must follow.
func (p *pump) next(conn syscall.RawConn, wait bool) error {
	p.wait = wait
	if err := conn.Read(p.tryRead); err != nil {
		return err
	}
	switch {
	case p.failure != nil:
		return p.failure
	case p.size == 0:
		return io.EOF
	}
	return nil
}

func (p *pump) hand() error {
	err := p.sink.put(p.buffer[:p.size])
	buffers.Put(p.buffer)
	p.buffer = nil
	return err
}

// read is tryRead; it reports that there is nothing to wait for.
func (p *pump) read(fd uintptr) bool {
	p.buffer = buffers.Get().(*[bufferSize]byte)
	p.size, p.failure = syscall.Read(int(fd), p.buffer[:])
	for errors.Is(p.failure, syscall.EINTR) {
		p.size, p.failure = syscall.Read(int(fd), p.buffer[:])
	}
	if p.fifo && p.failure == nil && p.size == 0 && !fifo.Ended(fd) {
		p.failure = syscall.EAGAIN
	}
	if p.failure != nil || p.size == 0 {
		buffers.Put(p.buffer)
		p.buffer = nil
	}
	return !errors.Is(p.failure, syscall.EAGAIN) || !p.wait
}

// clientSink sends a process's output to a client. When the client is gone the output is dropped: the
// process goes on until somebody kills it.
type clientSink struct {
	conn end
	gone bool
}

func (s *clientSink) put(p []byte) error {
	if s.gone {
		return nil
	}
	if _, err := s.conn.Write(p); err != nil {
		s.gone = true
	}
	return nil
}

func (s *clientSink) flush() {}
func (s *clientSink) hurry() {} // nobody else waits for what an exec says
func (s *clientSink) close() { s.conn.Close() }
func (s *clientSink) abort() { _ = s.conn.SetWriteDeadline(time.Unix(1, 0)) } // a closed one needs none

// stdinSink passes a client's input to a process. Closing it closes the process's stdin unless that is
// a terminal, whose other direction is still in use.
type stdinSink struct {
	stdin *os.File
	keep  bool
	// Of an exec with a lease: a client that is gone has not ended its input, so the process must not take half of it for all.
	// It gets its end of file only when it has been ended, or abort is called.
	client  end // nil: no lease
	ended   <-chan struct{}
	aborted chan struct{}
	once    sync.Once
}

func (s *stdinSink) put(p []byte) error {
	_, err := s.stdin.Write(p)
	return err
}

func (s *stdinSink) flush() {}
func (s *stdinSink) hurry() {}

func (s *stdinSink) close() {
	if s.keep {
		return
	}
	if s.client != nil && sock.HungUp(s.client) {
		select {
		case <-s.ended:
		case <-s.aborted:
		}
	}
	s.stdin.Close()
}

func (s *stdinSink) abort() {
	if s.client != nil {
		s.once.Do(func() { close(s.aborted) })
	}
	_ = s.stdin.SetWriteDeadline(time.Unix(1, 0)) // a closed one needs none
}

// discard is the sink of an output that nobody asked for.
type discard struct{}

func (discard) put([]byte) error { return nil }
func (discard) flush()           {}
func (discard) hurry()           {}
func (discard) close()           {}
func (discard) abort()           {}
