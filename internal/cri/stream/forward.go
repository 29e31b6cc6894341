// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
)

// maxForwards bounds the connections of one port-forward session, those that are being opened included.
const maxForwards = 1024

// portForward serves SPDY, SPDY in a WebSocket, and the old WebSocket protocol with two channels for each port, which is the library's.
func (s *Server) portForward(client *session, r *http.Request, request *runtimeapi.PortForwardRequest) {
	f := &forwarder{s: s, ctx: client.ctx, id: request.GetPodSandboxId(), ports: request.GetPort()}
	idle := s.newIdle(client.cancel, "port-forward", f.id)
	defer idle.stop()
	switch {
	case !isWebSocket(r):
		f.serveSPDY(idleWatch{client, idle}, r)
	case offersTunnel(r):
		if w, inner, err := tunnel(client, r); err == nil { // otherwise the client has been told
			f.serveSPDY(idleWatch{w, idle}, inner)
		}
	case len(f.ports) == 0:
		http.Error(client, "this WebSocket protocol needs the ports in the PortForwardRequest", http.StatusBadRequest)
	default:
		portforward.ServePortForward(idleWatch{client, idle}, r, f, f.id, "", &portforward.V4Options{Ports: f.ports}, 0, s.c.CreationTimeout,
			portforward.SupportedProtocols)
	}
}

// forwarder is the connections of one port-forward session.
type forwarder struct {
	s     *Server
	ctx   context.Context
	id    string
	ports []int32 // that were asked for; empty: any

	conn    httpstream.Connection // SPDY's
	pairs   map[string]*pair      // that lack a stream; of serveSPDY's goroutine
	open    atomic.Int32
	expired chan *pair
}

// pair is one connection's streams. The error stream tells why it could not be made.
type pair struct {
	request string
	port    uint16
	data    httpstream.Stream
	errors  httpstream.Stream
	replied [2]<-chan struct{} // for data and errors: the client knows of the stream
	timer   *time.Timer
}

// serveSPDY serves until the client goes, or the session's end.
func (f *forwarder) serveSPDY(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(f.ctx)
	_, conn, opened, err := upgradeSPDY(ctx, w, r, portforward.SupportedProtocols, admitForward)
	if err != nil {
		cancel()
		f.s.log.Debug("SPDY upgrade", "error", err)
		return
	}
	defer conn.Close()
	defer cancel() // first: nobody takes streams any more
	f.conn, f.pairs, f.expired = conn, map[string]*pair{}, make(chan *pair)
	defer func() {
		for _, p := range f.pairs {
			p.timer.Stop()
		}
	}()
	for {
		select {
		case <-conn.CloseChan():
			return
		case <-ctx.Done():
			f.part()
			return
		case s := <-opened:
			f.add(ctx, s)
		case p := <-f.expired:
			f.drop(p, "its other stream was not opened in time")
		}
	}
}

// part lets the clients of open connections hear why the session ends.
func (f *forwarder) part() {
	for deadline := time.Now().Add(partTime / 2); f.open.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

// ended is why the session ends, unless it is the client that leaves; nil: it goes on.
func (f *forwarder) ended() error {
	if f.ctx.Err() == nil || errors.Is(context.Cause(f.ctx), runtime.ErrClientGone) {
		return nil
	}
	return context.Cause(f.ctx)
}

// admitForward checks what a stream says of itself (portforward.k8s.io).
func admitForward(s httpstream.Stream) error {
	if _, err := forwardPort(s); err != nil {
		return err
	}
	switch name := s.Headers().Get(portforward.StreamType); name {
	case portforward.StreamTypeData, portforward.StreamTypeError:
		return nil
	default:
		return fmt.Errorf("stream type %.100q is neither data nor error", name)
	}
}

func forwardPort(s httpstream.Stream) (uint16, error) {
	text := s.Headers().Get(portforward.PortHeader)
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port %.20q is not in 1 to 65535", text)
	}
	return uint16(port), nil
}

// add puts a stream to the other one of its connection, and makes the connection when both are there.
func (f *forwarder) add(ctx context.Context, s spdyStream) {
	isError := s.Headers().Get(portforward.StreamType) == portforward.StreamTypeError
	request := s.Headers().Get(portforward.PortForwardRequestIDHeader)
	if request == "" { // clients of old open the error stream, then the data stream
		id := s.Identifier()
		if !isError {
			id -= 2
		}
		request = "#" + strconv.FormatUint(uint64(id), 10)
	}
	p, ok := f.pairs[request]
	if !ok {
		if int(f.open.Load())+len(f.pairs) >= maxForwards {
			_ = s.Reset() // with the connection gone it is gone, too
			f.conn.RemoveStreams(s)
			return
		}
		p = &pair{request: request}
		p.timer = time.AfterFunc(f.s.c.CreationTimeout, func() {
			select {
			case f.expired <- p:
			case <-ctx.Done():
			}
		})
		f.pairs[request] = p
	}
	switch {
	case isError && p.errors == nil:
		p.errors, p.replied[1] = s, s.replied
	case !isError && p.data == nil:
		p.data, p.replied[0] = s, s.replied
		p.port, _ = forwardPort(s) // it was admitted
	default:
		_ = s.Reset()
		f.conn.RemoveStreams(s)
		return
	}
	if p.errors != nil && p.data != nil {
		p.timer.Stop()
		delete(f.pairs, request)
		f.open.Add(1)
		go f.connect(p)
	}
}

// drop gives up a connection that lacks a stream.
func (f *forwarder) drop(p *pair, why string) {
	if f.pairs[p.request] != p {
		return // the second stream was faster
	}
	delete(f.pairs, p.request)
	if p.errors != nil {
		_, _ = io.WriteString(p.errors, why) // the client may be gone
	}
	f.end(p)
}

// end takes a connection's streams off the session. What the client still sends is then dropped instead of stopping all others.
func (f *forwarder) end(p *pair) {
	for _, s := range []httpstream.Stream{p.data, p.errors} {
		if s != nil {
			_ = s.Reset() // a stream that both sides have ended is none any more
			f.conn.RemoveStreams(s)
		}
	}
}

// connect serves one connection. The error stream gets a text only when the connection could not be made, or the session ends: clients (client-go)
// end the whole session on one. A connection that breaks later is told by the reset of its data stream.
func (f *forwarder) connect(p *pair) {
	defer f.open.Add(-1)
	defer f.end(p)
	// A connection that is refused at once must not end its streams before the client has them: it would not hear why.
	for _, replied := range p.replied {
		select {
		case <-replied:
		case <-f.ctx.Done():
		}
	}
	if err := f.forward(int32(p.port), p.data); err != nil {
		f.s.log.Debug("port cannot be forwarded", "sandbox", f.id, "port", p.port, "error", err)
		fmt.Fprintf(p.errors, "forward port %d: %v", p.port, err)
	}
	p.errors.Close()
}

// forward passes one connection's bytes on to its end. Only that it could not be made is an error, and that the session ends.
func (f *forwarder) forward(port int32, data io.ReadWriteCloser) error {
	if len(f.ports) > 0 && !slices.Contains(f.ports, port) {
		return fmt.Errorf("the port was not asked for: %w", pod.ErrInvalid)
	}
	err := f.s.c.Pods.PortForward(f.ctx, f.id, uint16(port), data)
	broke := errors.Is(err, pod.ErrReset) || f.ctx.Err() != nil
	if err != nil && !broke {
		return err
	}
	f.s.log.Debug("forwarded connection ended", "sandbox", f.id, "port", port, "error", err)
	return f.ended()
}

// PortForward implements portforward.PortForwarder, for the library's WebSocket protocol.
func (f *forwarder) PortForward(_ context.Context, _, _ string, port int32, data io.ReadWriteCloser) error {
	return f.forward(port, data)
}
