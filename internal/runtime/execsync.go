// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	"github.com/berth-run/berth/internal/shimapi/task"
)

const (
	// DefaultExecLimit bounds each of an exec's output streams where the request does not.
	DefaultExecLimit = 16 << 20
	// streamLimit bounds the handshake on the stdio socket.
	streamLimit = 10 * time.Second
	// killLimit bounds the kill of an exec that timed out.
	killLimit = 10 * time.Second
	sigkill   = int(syscall.SIGKILL)
)

// ExecRequest describes a command to run in a container to its end.
type ExecRequest struct {
	// ID is the exec's own, unique within the container; empty: a random one.
	ID string
	// Process is an OCI runtime-spec process, as JSON.
	Process []byte
	// Timeout, if positive, is after when the command and all that it started are killed.
	Timeout time.Duration
	// Limit is how many bytes of each of stdout and stderr are kept; 0: DefaultExecLimit.
	Limit int64
}

// ExecResult is what became of a command.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int
	// Truncated tells that there was more output than was kept.
	Truncated bool
}

// ExecSync runs a command in a running container and waits for its end; not for children that it leaves behind, even if
// they hold its output open. ErrExecTimeout: it ran into its own timeout. When ctx ends, the command is killed, too.
// In both cases the result has the output until then.
func (s *Shim) ExecSync(ctx context.Context, id string, req ExecRequest) (ExecResult, error) {
	if req.ID == "" {
		req.ID = rand.Text()
	}
	if req.Limit <= 0 {
		req.Limit = DefaultExecLimit
	}
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, req.Timeout, fmt.Errorf("%w after %s", ErrExecTimeout, req.Timeout))
		defer cancel()
	}
	launched, err := s.launchSlot(ctx)
	if err != nil {
		return ExecResult{}, translate("exec in", id, err)
	}
	launched = sync.OnceFunc(launched)
	defer launched()
	lease, before, stdout, stderr, err := s.openPipes(ctx, id, req)
	if err != nil {
		return ExecResult{}, translate("exec in", id, err)
	}
	// The end of the lease has the shim forget the exec.
	defer lease.Close()
	if before != nil {
		defer before.close() // after the pipes, into which it may be writing
	}
	defer stdout.close()
	defer stderr.close()

	exit := func(ctx context.Context) (int, error) { return s.exitOf(ctx, id, req.ID, lease) }
	if before != nil {
		exit = func(ctx context.Context) (int, error) { return s.waitExec(ctx, id, req.ID) }
	}
	code, err := s.execToEnd(ctx, id, req, exit, launched)
	if before != nil {
		before.finish()
		s.forgetExec(context.WithoutCancel(ctx), id, req.ID)
	}
	result := ExecResult{ExitCode: code}
	var cut [2]bool
	result.Stdout, cut[0] = stdout.finish()
	result.Stderr, cut[1] = stderr.finish()
	result.Truncated = cut[0] || cut[1]
	return result, translate("exec in", id, err)
}

// execToEnd starts the command, says so to launched, waits for its exit, and sees to it that it has ended on return.
func (s *Shim) execToEnd(ctx context.Context, id string, req ExecRequest, exit func(context.Context) (int, error), launched func()) (code int, err error) {
	// The calls go on while ctx has ended but the command has not.
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	type outcome struct {
		code int
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		o.err = s.exec(calls, id, req)
		launched()
		if o.err == nil {
			o.code, o.err = exit(calls)
		}
		done <- o
	}()
	var o outcome
	select {
	case o = <-done:
	case <-ctx.Done():
		kill, stop := context.WithTimeout(calls, killLimit)
		defer stop()
		pace := 10 * time.Millisecond
		for ended := false; !ended; pace = min(2*pace, time.Second) {
			killErr := s.killExec(kill, id, req.ID)
			timer := time.NewTimer(pace)
			select {
			case o = <-done:
				ended = true
			case <-timer.C: // the command was not yet started when it was to be killed
			case <-kill.Done():
				timer.Stop()
				// The cause alone is for errors.Is: the shim's trouble must not pass for the exec's.
				return 0, fmt.Errorf("%w; whether it has ended is not known: %s", context.Cause(ctx), errors.Join(killErr, kill.Err()).Error())
			}
			timer.Stop()
		}
		o.err = context.Cause(ctx)
	}
	return o.code, o.err
}

func (s *Shim) exec(ctx context.Context, id string, req ExecRequest) error {
	return s.call(ctx, once, func(client *ttrpc.Client) error {
		_, err := shimpb.NewShimClient(client).Exec(ctx, &shimpb.ExecRequest{Id: id, ExecId: req.ID, Process: req.Process,
			Stdout: true, Stderr: true, Lease: true})
		return err
	})
}

// exitOf waits for the exit code. When the lease breaks, the other connection tells why.
func (s *Shim) exitOf(ctx context.Context, id, execID string, lease net.Conn) (int, error) {
	if code, err := shimapi.ReadExecExit(lease); err == nil {
		return int(code), nil
	}
	return s.waitExec(ctx, id, execID)
}

func (s *Shim) waitExec(ctx context.Context, id, execID string) (code int, err error) {
	err = s.call(ctx, repeat, func(client *ttrpc.Client) error {
		resp, err := task.NewTaskClient(client).Wait(ctx, &task.WaitRequest{Id: id, ExecId: execID})
		code = int(resp.GetExitStatus())
		return err
	})
	return code, err
}

// killExec kills the command and all that it started.
func (s *Shim) killExec(ctx context.Context, id, execID string) error {
	return s.call(ctx, repeat, func(client *ttrpc.Client) error {
		_, err := task.NewTaskClient(client).Kill(ctx, &task.KillRequest{Id: id, ExecId: execID, Signal: uint32(sigkill), All: true})
		return err
	})
}

// openStream connects to the stdio socket and waits until the shim has the stream registered.
func (s *Shim) openStream(ctx context.Context, header shimapi.StreamHeader) (*net.UnixConn, error) {
	return s.register(ctx, header.Stream, func(conn *net.UnixConn) error { return shimapi.WriteStreamHeader(conn, header) },
		func(conn *net.UnixConn) error { return shimapi.ReadStreamAnswer(conn) })
}

// openLease connects a lease that introduce asks for the exit; whether the shim is going to tell it there is what shims differ in.
func (s *Shim) openLease(ctx context.Context, introduce func(*net.UnixConn) error) (lease *net.UnixConn, tells bool, err error) {
	lease, err = s.register(ctx, shimapi.Lease, introduce, func(conn *net.UnixConn) (err error) {
		tells, err = shimapi.ReadLeaseAnswer(conn)
		return err
	})
	return lease, tells, err
}

// register connects to the stdio socket, where introduce says which stream it is, and waits until the shim has it, as answer reads.
func (s *Shim) register(ctx context.Context, stream shimapi.Stream, introduce, answer func(*net.UnixConn) error) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, streamLimit)
	defer cancel()
	conn, err := dial(ctx, shimapi.StdioSocketPath(s.dir))
	if err == nil {
		stop := context.AfterFunc(ctx, func() { conn.Close() }) // wakes whoever reads or writes
		if err = introduce(conn); err == nil {
			err = answer(conn)
		}
		if !stop() && err == nil {
			err = ctx.Err()
		}
	}
	if err == nil {
		return conn, nil
	}
	if conn != nil {
		conn.Close()
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return nil, fmt.Errorf("connect %s: %w", stream, err)
}
