// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/berth-run/berth/internal/runtime"
)

const (
	// firstSizeWait is how long an exec with a terminal waits for the client to tell its size, which clients do at once.
	firstSizeWait = 100 * time.Millisecond
	// dialTimeout bounds a connection to a port of a pod: it is on this machine.
	dialTimeout = 10 * time.Second
)

// CheckExec tells whether an exec could be started now: for an early answer. Errors: ErrNotFound, ErrState, ErrInvalid.
func (m *Manager) CheckExec(id string, cmd []string) error {
	c, _, err := m.running(id)
	if err == nil && len(cmd) == 0 {
		err = fmt.Errorf("%s: exec: cmd is empty: %w", c, ErrInvalid)
	}
	return err
}

// Exec runs a command in a running container with a client's streams and returns its exit code; see runtime.Shim.Exec for its end.
// Errors: ErrNotFound, ErrState, ErrInvalid, runtime.ErrClientGone.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, session runtime.Session) (int, error) {
	c, shim, err := m.running(id)
	if err != nil {
		return 0, err
	}
	var size runtime.Size
	if session.TTY {
		size = firstSize(ctx, session.Resize)
	}
	process, err := c.execProcess(cmd, session.TTY, size)
	if err != nil {
		return 0, c.useFailed(err)
	}
	code, err := shim.Exec(ctx, c.ID, process, session)
	if err != nil {
		return 0, c.useFailed(fmt.Errorf("%s: exec %q: %w", c, cmd[0], err))
	}
	return code, nil
}

// firstSize is the size that a terminal begins with, zero if the client does not tell it soon.
func firstSize(ctx context.Context, sizes <-chan runtime.Size) runtime.Size {
	timer := time.NewTimer(firstSizeWait)
	defer timer.Stop()
	select {
	case size := <-sizes: // zero if it is closed
		return size
	case <-timer.C:
	case <-ctx.Done():
	}
	return runtime.Size{}
}

// CheckAttach tells whether a client could be attached now, with or without stdin. Errors: ErrNotFound, ErrState.
func (m *Manager) CheckAttach(id string, stdin bool) error {
	c, _, err := m.running(id)
	if err == nil && stdin && !c.Config.GetStdin() {
		err = fmt.Errorf("%s: attach: the container was created without stdin; attach to its output only: %w", c, ErrState)
	}
	return err
}

// Attach connects a client with the streams of a running container until one of them is gone; the container runs on. When the client
// ends its stdin and the container's is to stay open (not stdin_once), the client is detached, as with other runtimes.
// Errors: ErrNotFound, ErrState, runtime.ErrClientGone, runtime.ErrOutputLost.
func (m *Manager) Attach(ctx context.Context, id string, session runtime.Session) error {
	if err := m.CheckAttach(id, session.Stdin != nil); err != nil {
		return err
	}
	c, shim, err := m.running(id)
	if err != nil {
		return err
	}
	session.TTY = c.Config.GetTty()
	if err := shim.Attach(ctx, c.ID, session, !c.Config.GetStdinOnce()); err != nil {
		return c.useFailed(fmt.Errorf("%s: attach: %w", c, err))
	}
	return nil
}

// ErrReset: the pod's side has broken a forwarded connection off, so its other side must not look properly ended.
var ErrReset = errors.New("connection was reset")

// CheckPortForward tells whether a pod's ports could be forwarded now. Errors: ErrNotFound, ErrState.
func (m *Manager) CheckPortForward(id string) error {
	_, err := m.forwardable(id)
	return err
}

func (m *Manager) forwardable(id string) (*Sandbox, error) {
	s, err := m.SandboxByID(id)
	if err == nil && !s.Status().Ready {
		err = fmt.Errorf("%s: port-forward: it is not ready: %w", s, ErrState)
	}
	return s, err
}

// PortForward connects a client with a TCP port of the pod's localhost, IPv4 or IPv6, and passes bytes on until both sides have ended.
// Closing the client ends the direction towards it only. Errors: ErrNotFound, ErrState, ErrUnavailable (nothing listens),
// ErrReset.
func (m *Manager) PortForward(ctx context.Context, id string, port uint16, client io.ReadWriteCloser) error {
	s, err := m.forwardable(id)
	if err != nil {
		return err
	}
	conn, err := m.dialPod(ctx, s, port)
	if err != nil {
		return fmt.Errorf("%s: port-forward: %w", s, err)
	}
	defer conn.Close()
	if err := forward(ctx, client, conn); err != nil {
		return fmt.Errorf("%s: port-forward to port %d: %w", s, port, err)
	}
	return nil
}

func (m *Manager) dialPod(ctx context.Context, s *Sandbox, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type target struct {
		netns   string
		address netip.Addr
	}
	targets := []target{{s.paths.pins.Net, netip.AddrFrom4([4]byte{127, 0, 0, 1})}, {s.paths.pins.Net, netip.IPv6Loopback()}}
	if s.sandboxContainer && s.paths.pins.Net != "" {
		// A runtime with a network stack of its own has its localhost in there. What listens on all addresses is reached as other pods reach it.
		for _, ip := range s.Status().IPs {
			targets = append(targets, target{"", ip})
		}
	}
	var errs []error
	for _, t := range targets {
		conn, err := m.parts.Host.Dial(ctx, t.netns, netip.AddrPortFrom(t.address, port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if s.sandboxContainer && s.paths.pins.Net != "" {
		conn, err := m.parts.Runtime.DialSandbox(ctx, s.sandboxHandler(), s.ID, port)
		if err == nil {
			return wholeConn{conn}, nil
		}
		return nil, fmt.Errorf("nothing can be reached at port %d of the pod's localhost or address: %w; %w; %w: %w", port, errs[0], errs[len(errs)-1], err, ErrUnavailable)
	}
	return nil, fmt.Errorf("nothing can be reached at port %d of the pod's localhost: %w; %w: %w", port, errs[0], errs[1], ErrUnavailable)
}

// wholeConn is a connection whose directions cannot end one by one. That the client has sent all is not passed on: what the pod still
// sends would be lost.
type wholeConn struct{ net.Conn }

func (wholeConn) CloseWrite() error { return nil }

// forward copies in both directions, each to its own end.
func forward(ctx context.Context, client io.ReadWriteCloser, conn net.Conn) error {
	broken := true
	defer func() {
		if tcp, ok := conn.(*net.TCPConn); ok && broken {
			_ = tcp.SetLinger(0) // the pod is to see a reset, too
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	results := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, client)
		if err == nil {
			err = conn.(interface{ CloseWrite() error }).CloseWrite()
		}
		results <- err
	}()
	go func() {
		_, err := io.Copy(client, conn)
		if err == nil {
			err = client.Close()
		}
		results <- err
	}()
	for range 2 {
		select {
		case err := <-results:
			if err != nil {
				return fmt.Errorf("%w: %w", ErrReset, err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	broken = false
	return nil
}
