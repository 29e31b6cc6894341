// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// streamFlags say how a streaming session reaches the runtime.
type streamFlags struct {
	transport, ca, cert, key string
}

const (
	overSPDY      = "spdy"
	overWebSocket = "websocket"
)

func (s *streamFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.transport, "transport", overSPDY, "protocol of the session: "+overSPDY+" or "+overWebSocket)
	f.StringVar(&s.ca, "tls-ca", "", "CAs (PEM) that have signed the certificate of a streaming server with TLS (default the system's)")
	f.StringVar(&s.cert, "tls-cert", "", "certificate (PEM) to show to a streaming server with TLS")
	f.StringVar(&s.key, "tls-key", "", "key of that certificate (PEM)")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
}

func (s *streamFlags) check() error {
	if s.transport != overSPDY && s.transport != overWebSocket {
		return fmt.Errorf("--transport %q: is neither %s nor %s", s.transport, overSPDY, overWebSocket)
	}
	return nil
}

func (s *streamFlags) config() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{CAFile: s.ca, CertFile: s.cert, KeyFile: s.key}}
}

// executor brings the streams of an exec or an attach to a URL. It notes in e how that ended; with WebSocket the library itself sees a loss.
func (s *streamFlags) executor(at string, e *ending) (remotecommand.Executor, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, fmt.Errorf("the runtime's answer: %w", err)
	}
	if s.transport == overWebSocket {
		return remotecommand.NewWebSocketExecutor(s.config(), http.MethodGet, at)
	}
	transport, upgrader, err := spdy.RoundTripperFor(s.config())
	if err != nil {
		return nil, err
	}
	e.Upgrader = upgrader
	return remotecommand.NewSPDYExecutorForTransports(transport, e, http.MethodPost, u)
}

// forwarder brings the connections of a port-forward to a URL.
func (s *streamFlags) forwarder(at string, addresses, ports []string, stop, ready chan struct{}, out, errOut io.Writer) (*portforward.PortForwarder, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, fmt.Errorf("the runtime's answer: %w", err)
	}
	if s.transport == overWebSocket {
		dialer, err := portforward.NewSPDYOverWebsocketDialer(u, s.config())
		if err != nil {
			return nil, err
		}
		return portforward.NewOnAddresses(dialer, addresses, ports, stop, ready, out, errOut)
	}
	transport, upgrader, err := spdy.RoundTripperFor(s.config())
	if err != nil {
		return nil, err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	return portforward.NewOnAddresses(dialer, addresses, ports, stop, ready, out, errOut)
}

// terminal is the user's, for a session that has one too.
type terminal struct {
	in, out *os.File
}

// userTerminal is where the user types, nil if the command's input is none.
func userTerminal(cmd *cobra.Command) *terminal {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil
	}
	t := &terminal{in: in, out: in}
	if out, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(out.Fd())) {
		t.out = out
	}
	return t
}

// raw hands what is typed on as it is, Ctrl-C too, until restore.
func (t *terminal) raw() (restore func(), err error) {
	before, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set terminal to raw: %w", err)
	}
	return func() { _ = term.Restore(int(t.in.Fd()), before) }, nil // the terminal may be gone
}

// sizeQueue tells the terminal's size at first and with each change.
type sizeQueue struct {
	terminal *terminal
	changes  chan os.Signal
	told     bool
}

func (t *terminal) sizes() *sizeQueue {
	q := &sizeQueue{terminal: t, changes: make(chan os.Signal, 1)}
	signal.Notify(q.changes, syscall.SIGWINCH)
	return q
}

// Next implements remotecommand.TerminalSizeQueue.
func (q *sizeQueue) Next() *remotecommand.TerminalSize {
	if q.told {
		if _, ok := <-q.changes; !ok {
			return nil
		}
	}
	q.told = true
	width, height, err := term.GetSize(int(q.terminal.out.Fd()))
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}

func (q *sizeQueue) stop() {
	signal.Stop(q.changes)
	close(q.changes)
}

// session runs an exec or an attach: o has the wanted streams. It returns an exitCode for a command that ends with one.
func (s *streamFlags) session(ctx context.Context, cmd *cobra.Command, at string, o remotecommand.StreamOptions) error {
	var e ending
	executor, err := s.executor(at, &e)
	if err != nil {
		return err
	}
	listenToAsides(func(string, error) {}) // all that it tells of ends the session, or has ended it
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, w := range []*io.Writer{&o.Stdout, &o.Stderr} {
		if *w != nil {
			*w = outlet{to: *w, fail: cancel}
		}
	}
	if o.Stdin != nil {
		o.Stdin = inlet{from: o.Stdin, fail: cancel}
	}
	if t := userTerminal(cmd); o.Tty && t != nil {
		if o.Stdin != nil {
			restore, err := t.raw()
			if err != nil {
				return err
			}
			defer restore()
		}
		sizes := t.sizes()
		defer sizes.stop()
		o.TerminalSizeQueue = sizes
	}
	err = executor.StreamWithContext(ctx, o)
	var lost lostData
	if errors.As(context.Cause(ctx), &lost) {
		return lost
	}
	if err == nil && e.lost() {
		return errLost
	}
	if err != nil && strings.HasPrefix(err.Error(), "error reading from error stream") {
		return fmt.Errorf("%w (%w)", errLost, err)
	}
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exitCode(exit.ExitStatus())
	}
	return err
}
