// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// maxStreams bounds the clients' connections that wait for their exec, or have not said yet for which.
	maxStreams = 256
	// streamWait is how long a connection may wait.
	streamWait = 10 * time.Second
)

// streams holds the connections to the stdio socket until the exec comes that they belong to.
type streams struct {
	log *slog.Logger
	// attach takes a connection for a running container and answers it.
	attach func(header shimapi.StreamHeader, conn *net.UnixConn) error

	mu      sync.Mutex
	waiting map[shimapi.StreamHeader]*waitingStream
	unknown int // accepted, header not read yet
	closed  bool
}

// waitingStream is what one connection has brought.
type waitingStream struct {
	conn   *net.UnixConn
	pipes  []int // of a lease: what the process's stdout and stderr are to be
	expiry *time.Timer
}

func (w *waitingStream) close() {
	w.conn.Close()
	sock.CloseAll(w.pipes)
}

func newStreams(log *slog.Logger) *streams {
	return &streams{log: log, waiting: make(map[shimapi.StreamHeader]*waitingStream)}
}

// serve takes connections until the listener is closed.
func (s *streams) serve(listener *net.UnixListener) {
	rpc.Accept(listener, s.log, func(conn *net.UnixConn) {
		s.mu.Lock()
		full := s.unknown+len(s.waiting) >= maxStreams
		if !full {
			s.unknown++
		}
		s.mu.Unlock()
		if full {
			s.refuse(conn, fmt.Errorf("%d streams are waiting already", maxStreams))
			return
		}
		go s.admit(conn)
	})
}

// admit reads the header and answers.
func (s *streams) admit(conn *net.UnixConn) {
	header, pipes, err := s.identify(conn)
	if err == nil && header.ExecID == "" {
		s.mu.Lock()
		s.unknown--
		s.mu.Unlock()
		if err := s.attach(header, conn); err != nil {
			s.refuse(conn, err)
		}
		return
	}
	stream := &waitingStream{conn: conn, pipes: pipes}
	answer := func() error { return shimapi.WriteStreamAnswer(conn, nil) }
	if header.Exit {
		answer = func() error { return shimapi.WriteLeaseAnswer(conn) }
	}
	header.Pipes, header.Exit = false, false // it is known by its other parts
	s.mu.Lock()
	s.unknown--
	if err == nil {
		err = s.addLocked(header, stream)
	}
	s.mu.Unlock()
	if err != nil {
		sock.CloseAll(pipes)
		s.refuse(conn, err)
		return
	}
	// From here on the connection may already have been taken: the exec cannot come before the answer from a
	// client that keeps to the protocol.
	if err := answer(); err != nil {
		s.drop(header, stream)
	}
}

// identify reads a connection's header, and takes the pipes that come with it.
func (s *streams) identify(conn *net.UnixConn) (header shimapi.StreamHeader, pipes []int, err error) {
	if err := conn.SetDeadline(time.Now().Add(streamWait)); err != nil {
		return header, nil, err
	}
	if err := samePeer(conn); err != nil {
		return header, nil, err
	}
	rights := sock.NewRights(conn, shimapi.PipesOfLease)
	header, err = shimapi.ReadStreamHeader(rights)
	pipes = rights.Take()
	want := 0
	if header.Pipes {
		want = shimapi.PipesOfLease
	}
	if err == nil && len(pipes) != want {
		err = fmt.Errorf("%d descriptors came with the header, want %d", len(pipes), want)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		sock.CloseAll(pipes)
		return header, nil, err
	}
	return header, pipes, nil
}

// samePeer refuses other users than ours, should the socket's mode ever let them in.
func samePeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var failure error
	err = raw.Control(func(fd uintptr) {
		peer, failure = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err == nil {
		err = failure
	}
	if err != nil {
		return fmt.Errorf("identify client: %w", err)
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("identify client: user %d is not welcome", peer.Uid)
	}
	return nil
}

// addLocked registers the stream until it is taken or streamWait is over. Preconditions: s.mu is held.
func (s *streams) addLocked(header shimapi.StreamHeader, stream *waitingStream) error {
	if s.closed {
		return errors.New("the shim is ending")
	}
	if _, ok := s.waiting[header]; ok {
		return fmt.Errorf("%s of exec %s is connected already", header.Stream, header.ExecID)
	}
	stream.expiry = time.AfterFunc(streamWait, func() { s.drop(header, stream) })
	s.waiting[header] = stream
	return nil
}

func (s *streams) refuse(conn *net.UnixConn, reason error) {
	s.log.Warn("refused a stream", "err", reason)
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // the client may be gone: its matter
	_ = shimapi.WriteStreamAnswer(conn, reason)
	conn.Close()
}

// drop closes the stream if it is still waiting.
func (s *streams) drop(header shimapi.StreamHeader, stream *waitingStream) {
	s.mu.Lock()
	ok := s.waiting[header] == stream
	if ok {
		delete(s.waiting, header)
	}
	s.mu.Unlock()
	if ok {
		stream.expiry.Stop()
		stream.close()
	}
}

// take hands over a waiting stream.
func (s *streams) take(id, exec string, stream shimapi.Stream) (*waitingStream, bool) {
	header := shimapi.StreamHeader{ID: id, ExecID: exec, Stream: stream}
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok := s.waiting[header]
	if !ok {
		return nil, false
	}
	delete(s.waiting, header)
	found.expiry.Stop()
	return found, true
}

// refuseExec closes what waits for an exec that will not be.
func (s *streams) refuseExec(id, exec string) {
	for _, stream := range []shimapi.Stream{shimapi.Lease, shimapi.Stdin, shimapi.Stdout, shimapi.Stderr} {
		if found, ok := s.take(id, exec, stream); ok {
			found.close()
		}
	}
}

// close drops all that waits and refuses what still comes.
func (s *streams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for header, found := range s.waiting {
		found.expiry.Stop()
		found.close()
		delete(s.waiting, header)
	}
}
