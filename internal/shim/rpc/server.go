// SPDX-License-Identifier: Apache-2.0

// Package rpc serves ttrpc, unary calls only, without the protobuf runtime (see package wire for why). Only
// internal/shim uses it.
//
// A frame is a header of ten bytes (length and stream number as big-endian uint32, type, flags) and the message.
// Each call has a stream number of its own, odd and rising, which its answer bears, too.
package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/shim/wire"
)

const (
	headerSize = 10
	// maxMessage is ttrpc's own limit.
	maxMessage = 4 << 20
	// maxConns and maxCalls bound what clients can make the server hold: most calls are waits.
	maxConns = 64
	maxCalls = 2048
	// writeLimit is how long a client may take to receive an answer.
	writeLimit = 10 * time.Second

	// acceptPause is how long to wait when there are no descriptors for a new connection.
	acceptPause = 100 * time.Millisecond

	requestFrame  = 1
	responseFrame = 2
)

// Method handles one call: it decodes the payload and returns the answer.
type Method func(ctx context.Context, payload []byte) (wire.Message, error)

// Handle makes a Method of a function with typed messages.
func Handle[Req any, PReq interface {
	*Req
	wire.Message
}, Resp wire.Message](handler func(context.Context, PReq) (Resp, error)) Method {
	return func(ctx context.Context, payload []byte) (wire.Message, error) {
		req := PReq(new(Req))
		if err := wire.Unmarshal(payload, req); err != nil {
			return nil, Errorf(InvalidArgument, "decode request: %v", err)
		}
		return handler(ctx, req)
	}
}

// Server serves connections until Shutdown.
type Server struct {
	methods map[string]Method // by service/method
	admit   func(*net.UnixConn) error
	log     *slog.Logger
	called  func(payload int)

	mu    sync.Mutex
	conns map[*conn]struct{}
	ended bool
	calls sync.WaitGroup // answered or given up
}

// Config is a server's.
type Config struct {
	// Methods are named service/method.
	Methods map[string]Method
	// Admit refuses a connection.
	Admit func(*net.UnixConn) error
	Log   *slog.Logger
	// Called is run after each call with the size of its request.
	Called func(payload int)
}

// NewServer makes a server.
func NewServer(config Config) *Server {
	return &Server{
		methods: config.Methods, admit: config.Admit, log: config.Log, called: config.Called, conns: make(map[*conn]struct{}),
	}
}

// Serve takes connections until the listener is closed.
func (s *Server) Serve(listener *net.UnixListener) {
	Accept(listener, s.log, func(client *net.UnixConn) {
		if err := s.welcome(client); err != nil {
			s.log.Warn("refused a connection", "err", err)
			client.Close()
		}
	})
}

// Accept hands over connections until the listener is closed. Any other failure is logged and outlived: containers
// depend on this process, whether it can be reached or not.
func Accept(listener *net.UnixListener, log *slog.Logger, take func(*net.UnixConn)) {
	for {
		client, err := listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Error("accept a connection", "err", err)
			time.Sleep(acceptPause)
			continue
		}
		take(client)
	}
}

func (s *Server) welcome(client *net.UnixConn) error {
	if err := s.admit(client); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.conns) >= maxConns {
		return fmt.Errorf("%d connections, ending %v", len(s.conns), s.ended)
	}
	c := &conn{server: s, client: client, ended: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	s.conns[c] = struct{}{}
	go c.serve()
	return nil
}

// Shutdown cancels the calls in flight, answers them, waits for the clients to hang up, and closes all connections; all within limit. The
// listener is the caller's.
//
// It is for the clients to hang up first: one that finds the connection's end right behind an answer may take the call for
// cut off, as containerd's ttrpc client does, which looks at both and picks by chance.
func (s *Server) Shutdown(limit time.Duration) {
	s.mu.Lock()
	s.ended = true
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
		c.cancel()
	}
	s.mu.Unlock()
	left := make(chan struct{})
	go func() {
		defer close(left)
		s.calls.Wait()
		for _, c := range conns {
			<-c.ended
		}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-left:
	case <-timer.C:
	}
	for _, c := range conns {
		c.client.Close()
	}
}

// conn is a client's connection.
type conn struct {
	server *Server
	client *net.UnixConn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	ended  chan struct{} // closed when nothing more is read

	calls int // guarded by server.mu

	mu     sync.Mutex // one answer at a time
	broken bool
}

// serve reads requests until the client goes away or breaks the protocol.
func (c *conn) serve() {
	defer c.close()
	header := make([]byte, headerSize)
	last := uint32(0)
	for {
		if _, err := io.ReadFull(c.client, header); err != nil {
			return // the client is gone
		}
		size, stream := binary.BigEndian.Uint32(header), binary.BigEndian.Uint32(header[4:])
		if size > maxMessage {
			if _, err := io.CopyN(io.Discard, c.client, int64(size)); err != nil {
				return
			}
			c.refuse(stream, Errorf(ResourceExhausted, "message of %d bytes exceeds the limit of %d", size, maxMessage))
			continue
		}
		message := make([]byte, size)
		if _, err := io.ReadFull(c.client, message); err != nil {
			return
		}
		if header[8] != requestFrame {
			c.refuse(stream, Errorf(InvalidArgument, "frame of type %d: only unary calls are served", header[8]))
			continue
		}
		if stream%2 != 1 || stream <= last {
			c.refuse(stream, Errorf(InvalidArgument, "stream number %d after %d", stream, last))
			continue
		}
		last = stream
		err := c.call(stream, message)
		if errors.Is(err, errEnded) {
			c.server.calls.Wait() // those before it are answered first
			return
		}
		if err != nil {
			c.refuse(stream, err)
		}
	}
}

func (c *conn) close() {
	c.cancel()
	c.client.Close()
	s := c.server
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	close(c.ended)
}

// call starts a call; an error is one that the client has to be told.
func (c *conn) call(stream uint32, message []byte) error {
	var req wire.Request
	if err := wire.Unmarshal(message, &req); err != nil {
		return Errorf(InvalidArgument, "decode request: %v", err)
	}
	name := req.Service + "/" + req.Method
	method, ok := c.server.methods[name]
	if !ok {
		return Errorf(Unimplemented, "method %s is not served", name)
	}
	if err := c.enter(); err != nil {
		return err
	}
	go func() {
		defer c.leave(len(req.Payload))
		ctx := c.ctx
		if req.TimeoutNano > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(req.TimeoutNano))
			defer cancel()
		}
		resp, err := c.server.invoke(ctx, name, method, req.Payload)
		c.answer(stream, resp, err)
	}()
	return nil
}

// errEnded: the call came too late for an answer. The connection's end tells the client that it had no effect.
var errEnded = errors.New("the server has ended")

func (c *conn) enter() error {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errEnded
	}
	if c.calls >= maxCalls {
		return Errorf(ResourceExhausted, "%d calls are in flight", maxCalls)
	}
	c.calls++
	s.calls.Add(1)
	return nil
}

func (c *conn) leave(payload int) {
	s := c.server
	s.mu.Lock()
	c.calls--
	s.mu.Unlock()
	s.calls.Done()
	s.called(payload)
}

// invoke turns a panic into an error: it would take the exits of a whole pod with it.
func (s *Server) invoke(ctx context.Context, name string, method Method, payload []byte) (resp wire.Message, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			s.log.Error("panic", "method", name, "cause", cause, "stack", string(debug.Stack()))
			err = Errorf(Internal, "%s: panic: %v", name, cause)
		}
	}()
	resp, err = method(ctx, payload)
	if code := CodeOf(err); code != OK && code != NotFound && code != Canceled {
		s.log.Warn("call failed", "method", name, "err", err)
	}
	return resp, err
}

func (c *conn) refuse(stream uint32, err error) {
	c.server.log.Warn("call refused", "err", err)
	c.answer(stream, nil, err)
}

// answer sends one frame with one write.
func (c *conn) answer(stream uint32, message wire.Message, err error) {
	var resp wire.Response
	if err != nil {
		resp.Status = wire.RPCStatus{Code: int32(CodeOf(err)), Message: err.Error()}
	} else {
		resp.Payload = wire.Marshal(message)
	}
	body := wire.Marshal(&resp)
	frame := make([]byte, headerSize, headerSize+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	binary.BigEndian.PutUint32(frame[4:], stream)
	frame[8] = responseFrame
	frame = append(frame, body...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return
	}
	failure := c.client.SetWriteDeadline(time.Now().Add(writeLimit))
	if failure == nil {
		_, failure = c.client.Write(frame)
	}
	if failure == nil { // else an idle shim would wake up for it
		failure = c.client.SetWriteDeadline(time.Time{})
	}
	if c.broken = failure != nil; c.broken { // half an answer cannot be mended
		c.client.Close()
	}
}
