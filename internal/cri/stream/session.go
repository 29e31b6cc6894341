// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/berth-run/berth/internal/runtime"
)

// goodbyeWait is how long the end of stdin waits for the client's own end, which makes it a loss.
const goodbyeWait = 10 * time.Millisecond

// serve runs a session to its end.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, request any) {
	ctx, cancel := context.WithCancelCause(s.life)
	client := &session{ResponseWriter: w, ctx: ctx, cancel: cancel}
	defer client.finish()
	r = r.WithContext(ctx)
	switch request := request.(type) {
	case *runtimeapi.ExecRequest:
		s.remote(client, r, remote{s: s, ctx: ctx, end: cancel, since: time.Now(), cmd: request.GetCmd(), id: request.GetContainerId(), exec: true,
			options: remotecommand.Options{Stdin: request.GetStdin(), Stdout: request.GetStdout(), Stderr: request.GetStderr(), TTY: request.GetTty()}})
	case *runtimeapi.AttachRequest:
		s.remote(client, r, remote{s: s, ctx: ctx, end: cancel, since: time.Now(), id: request.GetContainerId(),
			options: remotecommand.Options{Stdin: request.GetStdin(), Stdout: request.GetStdout(), Stderr: request.GetStderr(), TTY: request.GetTty()}})
	case *runtimeapi.PortForwardRequest:
		s.portForward(client, r, request)
	}
}

// remote is an exec or an attached container.
type remote struct {
	s       *Server
	ctx     context.Context
	end     context.CancelCauseFunc // of ctx
	id      string
	exec    bool
	cmd     []string
	options remotecommand.Options
	since   time.Time
}

// opened tells how long the client waited for its streams.
func (m remote) opened() {
	if m.s.c.Opened != nil {
		m.s.c.Opened(m.kind(), time.Since(m.since))
	}
}

func (m remote) kind() string {
	if m.exec {
		return "exec"
	}
	return "attach"
}

// remote speaks the client's protocol.
func (s *Server) remote(client *session, r *http.Request, m remote) {
	if isWebSocket(r) {
		serveWebSocket(client, r, m)
		return
	}
	serveSPDY(client, r, m)
}

// run serves the session, and ends its outputs.
func (m remote) run(in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan runtime.Size) error {
	io := runtime.Session{TTY: tty, Resize: resize, Opened: m.opened}
	idle := m.s.newIdle(m.end, m.kind(), m.id)
	defer idle.stop()
	if in != nil && m.options.Stdin {
		io.Stdin = idleReader{stdin{m.ctx, in}, idle}
	}
	if out != nil && m.options.Stdout {
		io.Stdout = idleWriter{out, idle}
		defer out.Close()
	}
	if errOut != nil && m.options.Stderr {
		io.Stderr = idleWriter{errOut, idle}
		defer errOut.Close()
	}
	if !m.exec {
		return m.s.c.Pods.Attach(m.ctx, m.id, io)
	}
	code, err := m.s.c.Pods.Exec(m.ctx, m.id, m.cmd, io)
	if err == nil && code != 0 {
		err = exitError{code}
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
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	// SPDY's library shows the reset of a stream as its end. A client that leaves resets its streams, and is gone then.
	goodbye := time.NewTimer(goodbyeWait)
	defer goodbye.Stop()
	select {
	case <-s.ctx.Done():
		err = context.Cause(s.ctx)
	case <-goodbye.C:
	}
	return n, err
}

func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}
