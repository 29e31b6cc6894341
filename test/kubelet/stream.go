// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// Transport is a way to bring streams to their URL.
type Transport string

// The transports of client-go.
const (
	SPDY      Transport = "spdy"
	WebSocket Transport = "websocket"
)

// Transports are all of them.
var Transports = []Transport{SPDY, WebSocket}

// Executor is client-go's for a URL.
func (tr Transport) Executor(at string) (remotecommand.Executor, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: u.Scheme == "https"}}
	if tr == WebSocket {
		return remotecommand.NewWebSocketExecutor(config, "GET", at)
	}
	return remotecommand.NewSPDYExecutor(config, "POST", u)
}

// ExecURL asks for an exec.
func (c *Container) ExecURL(o remotecommand.StreamOptions, command ...string) (string, error) {
	r, err := c.D.Runtime.Exec(c.Ctx(), &cri.ExecRequest{ContainerId: c.ID, Cmd: command, Tty: o.Tty, Stdin: o.Stdin != nil,
		Stdout: o.Stdout != nil, Stderr: o.Stderr != nil && !o.Tty})
	return r.GetUrl(), err
}

// AttachURL asks to be attached.
func (c *Container) AttachURL(o remotecommand.StreamOptions) (string, error) {
	r, err := c.D.Runtime.Attach(c.Ctx(), &cri.AttachRequest{ContainerId: c.ID, Tty: o.Tty, Stdin: o.Stdin != nil,
		Stdout: o.Stdout != nil, Stderr: o.Stderr != nil && !o.Tty})
	return r.GetUrl(), err
}

// StreamExec runs a command with streams and returns its exit code.
func (c *Container) StreamExec(ctx context.Context, tr Transport, o remotecommand.StreamOptions, command ...string) (int, error) {
	at, err := c.ExecURL(o, command...)
	if err != nil {
		return 0, err
	}
	return tr.Stream(ctx, at, o)
}

// Attach attaches streams until the session's end.
func (c *Container) Attach(ctx context.Context, tr Transport, o remotecommand.StreamOptions) error {
	at, err := c.AttachURL(o)
	if err != nil {
		return err
	}
	_, err = tr.Stream(ctx, at, o)
	return err
}

// Stream runs a session and returns the exit code that it ended with.
func (tr Transport) Stream(ctx context.Context, at string, o remotecommand.StreamOptions) (int, error) {
	e, err := tr.Executor(at)
	if err != nil {
		return 0, err
	}
	err = e.StreamWithContext(ctx, o)
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitStatus(), nil
	}
	return 0, err
}

// Forward is a port-forward session.
type Forward struct {
	// Local is the address that leads to the pod's port.
	Local string
	// Done tells how the session ended.
	Done <-chan error

	stop chan struct{}
}

// Stop ends the session.
func (f *Forward) Stop() {
	close(f.stop)
	<-f.Done
}

// forwarder is client-go's for a URL.
func (tr Transport) forwarder(at string, port int, f *Forward, ready chan struct{}) (*portforward.PortForwarder, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	config, ports := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: u.Scheme == "https"}}, []string{fmt.Sprintf("0:%d", port)}
	if tr == WebSocket {
		dialer, err := portforward.NewSPDYOverWebsocketDialer(u, config)
		if err != nil {
			return nil, err
		}
		return portforward.New(dialer, ports, f.stop, ready, io.Discard, io.Discard)
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u), ports, f.stop, ready, io.Discard, io.Discard)
}

// Forward forwards a local port to one of the pod's.
func (p *Pod) Forward(tr Transport, port int) (*Forward, error) {
	r, err := p.D.Runtime.PortForward(p.Ctx(), &cri.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{int32(port)}})
	if err != nil {
		return nil, err
	}
	done, ready := make(chan error, 1), make(chan struct{})
	f := &Forward{Done: done, stop: make(chan struct{})}
	pf, err := tr.forwarder(r.GetUrl(), port, f, ready)
	if err != nil {
		return nil, err
	}
	go func() { done <- pf.ForwardPorts(); close(done) }()
	select {
	case <-ready:
	case err := <-done:
		return nil, fmt.Errorf("forward port: %w", err)
	case <-time.After(20 * time.Second):
		close(f.stop)
		return nil, errors.New("forward port: not ready after 20 s")
	}
	ports, err := pf.GetPorts()
	if err != nil {
		return nil, err
	}
	f.Local = fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
	return f, nil
}
