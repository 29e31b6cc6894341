// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	utilexec "k8s.io/utils/exec"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
)

// maxForwards bounds the connections of one port-forward session.
const maxForwards = 1024

// serve runs a session to its end.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, request any) {
	ctx, cancel := context.WithCancelCause(s.life)
	client := &session{ResponseWriter: w, ctx: ctx, cancel: cancel}
	defer client.finish()
	r = r.WithContext(ctx)
	switch request := request.(type) {
	case *runtimeapi.ExecRequest:
		s.remote(client, r, remote{s: s, ctx: ctx, cmd: request.GetCmd(), id: request.GetContainerId(), exec: true,
			options: remotecommand.Options{Stdin: request.GetStdin(), Stdout: request.GetStdout(), Stderr: request.GetStderr(), TTY: request.GetTty()}})
	case *runtimeapi.AttachRequest:
		s.remote(client, r, remote{s: s, ctx: ctx, id: request.GetContainerId(),
			options: remotecommand.Options{Stdin: request.GetStdin(), Stdout: request.GetStdout(), Stderr: request.GetStderr(), TTY: request.GetTty()}})
	case *runtimeapi.PortForwardRequest:
		s.portForward(client, r, request)
	}
}

// remote is an exec or an attached container.
type remote struct {
	s       *Server
	ctx     context.Context
	id      string
	exec    bool
	cmd     []string
	options remotecommand.Options
}

// remote speaks the client's protocol. The library's own WebSocket stops at version 4, which cannot end stdin.
func (s *Server) remote(client *session, r *http.Request, m remote) {
	switch {
	case isWebSocket(r):
		serveWebSocket(client, r, m)
	case m.exec:
		remotecommand.ServeExec(client, r, m, "", "", m.id, m.cmd, &m.options, s.c.IdleTimeout, s.c.CreationTimeout, remotecommand.SupportedStreamingProtocols)
	default:
		remotecommand.ServeAttach(client, r, m, "", "", m.id, &m.options, s.c.IdleTimeout, s.c.CreationTimeout, remotecommand.SupportedStreamingProtocols)
	}
}

// ExecInContainer implements remotecommand.Executor. An exit code other than 0 is a utilexec.CodeExitError, as it is: the library
// does not look into wrapped ones.
func (m remote) ExecInContainer(_ context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser, tty bool,
	resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return m.run(in, out, errOut, tty, sizes(m.ctx, resize))
}

// AttachContainer implements remotecommand.Attacher.
func (m remote) AttachContainer(_ context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, tty bool,
	resize <-chan remotecommand.TerminalSize) error {
	return m.run(in, out, errOut, tty, sizes(m.ctx, resize))
}

// run serves the session, and ends its outputs.
func (m remote) run(in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan runtime.Size) error {
	io := runtime.Session{TTY: tty, Resize: resize}
	if in != nil && m.options.Stdin {
		io.Stdin = stdin{m.ctx, in}
	}
	if out != nil && m.options.Stdout {
		io.Stdout = out
		defer out.Close()
	}
	if errOut != nil && m.options.Stderr {
		io.Stderr = errOut
		defer errOut.Close()
	}
	if !m.exec {
		return m.s.c.Pods.Attach(m.ctx, m.id, io)
	}
	code, err := m.s.c.Pods.Exec(m.ctx, m.id, m.cmd, io)
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return err
}

// stdin keeps the end of a lost connection from passing for the end of the input: half a file is not the file.
type stdin struct {
	ctx context.Context
	in  io.Reader
}

func (s stdin) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	if errors.Is(err, io.EOF) && s.ctx.Err() != nil {
		err = context.Cause(s.ctx)
	}
	return n, err
}

// sizes converts the library's sizes until the session is over.
func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan runtime.Size {
	if in == nil {
		return nil
	}
	out := make(chan runtime.Size)
	go func() {
		defer close(out)
		for size := range in { // the library closes it when the session is over
			select {
			case out <- runtime.Size{Width: size.Width, Height: size.Height}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// portForward serves SPDY, SPDY in a WebSocket, and the library's old WebSocket protocol with a channel for each port.
func (s *Server) portForward(client *session, r *http.Request, request *runtimeapi.PortForwardRequest) {
	f := &forwarder{s: s, ctx: client.ctx, id: request.GetPodSandboxId(), ports: request.GetPort()}
	var w http.ResponseWriter = client
	if isWebSocket(r) && offersTunnel(r) {
		var err error
		if w, r, err = tunnel(client, r); err != nil {
			return // the client has been told
		}
	}
	portforward.ServePortForward(w, r, f, f.id, "", &portforward.V4Options{Ports: f.ports}, s.c.IdleTimeout, s.c.CreationTimeout,
		portforward.SupportedProtocols)
}

// forwarder is the connections of one port-forward session.
type forwarder struct {
	s     *Server
	ctx   context.Context
	id    string
	ports []int32 // that were asked for; empty: any
	open  atomic.Int32
}

// PortForward implements portforward.PortForwarder for one connection. It returns an error only when the connection could not
// be made: clients (client-go) end the whole session on one, so that a connection that breaks later is told by a reset of its stream.
func (f *forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer f.open.Add(-1)
	if n := f.open.Add(1); n > maxForwards {
		return fmt.Errorf("the session has %d connections already", maxForwards)
	}
	if port < 1 || port > 65535 || len(f.ports) > 0 && !slices.Contains(f.ports, port) {
		return fmt.Errorf("port %d was not asked for: %w", port, pod.ErrInvalid)
	}
	err := f.s.c.Pods.PortForward(f.ctx, f.id, uint16(port), stream)
	if err == nil || !errors.Is(err, pod.ErrReset) && f.ctx.Err() == nil {
		return err
	}
	f.s.log.Debug("forwarded connection broke", "sandbox", f.id, "port", port, "error", err)
	if s, ok := stream.(httpstream.Stream); ok {
		return ignore(s.Reset()) // the connection may be gone as a whole
	}
	return nil
}

func ignore(error) error { return nil }

func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}
