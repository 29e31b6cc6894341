// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
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
	// drainLimit bounds the wait for output once the process has ended. The shim hangs up by itself well before, even if a
	// background child of the process keeps the pipe, so this is for a shim that is broken: on a busy node, a shorter
	// wait would cut off output that is on its way.
	drainLimit = 5 * time.Second
	// killLimit bounds the kill of an exec that timed out.
	killLimit = 10 * time.Second
	// forgetLimit bounds what an exec's caller waits for the shim to forget it.
	forgetLimit = time.Second
	sigkill     = int(syscall.SIGKILL)
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
	conns, err := s.openStreams(ctx, id, req.ID, shimapi.Lease, shimapi.Stdout, shimapi.Stderr)
	if err != nil {
		return ExecResult{}, translate("exec in", id, err)
	}
	defer conns[0].Close()
	stdout, stderr := newCapture(conns[1], req.Limit), newCapture(conns[2], req.Limit)
	defer stdout.close()
	defer stderr.close()

	code, started, err := s.execToEnd(ctx, id, req, launched)
	drained, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	result := ExecResult{ExitCode: code}
	var cut [2]bool
	result.Stdout, cut[0] = stdout.finish(drained)
	result.Stderr, cut[1] = stderr.finish(drained)
	result.Truncated = cut[0] || cut[1]
	if started { // only now: output that is still on its way would be forgotten, too
		s.forgetExec(context.WithoutCancel(ctx), id, req.ID)
	}
	return result, translate("exec in", id, err)
}

// execToEnd starts the command, says so to launched, and sees to it that it has ended on return. If it was started and has ended, the shim is to forget it.
func (s *Shim) execToEnd(ctx context.Context, id string, req ExecRequest, launched func()) (code int, started bool, err error) {
	// The calls go on while ctx has ended but the command has not.
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	type outcome struct {
		code    int
		started bool
		err     error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		o.err = s.exec(calls, id, req)
		launched()
		if o.err == nil {
			o.started = true
			o.code, o.err = s.waitExec(calls, id, req.ID)
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
				return 0, false, fmt.Errorf("%w; whether it has ended is not known: %s", context.Cause(ctx), errors.Join(killErr, kill.Err()).Error())
			}
			timer.Stop()
		}
		o.err = context.Cause(ctx)
	}
	return o.code, o.started, o.err
}

func (s *Shim) exec(ctx context.Context, id string, req ExecRequest) error {
	return s.call(ctx, once, func(client *ttrpc.Client) error {
		_, err := shimpb.NewShimClient(client).Exec(ctx, &shimpb.ExecRequest{Id: id, ExecId: req.ID, Process: req.Process,
			Stdout: true, Stderr: true, Lease: true})
		return err
	})
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

// forgetExec frees what the shim keeps of a command that has ended. With the container it would be freed, too.
func (s *Shim) forgetExec(ctx context.Context, id, execID string) {
	ctx, cancel := context.WithTimeout(ctx, forgetLimit)
	defer cancel()
	err := s.taskCall(ctx, repeat, "forget exec in", id, func(c task.TaskService) error {
		_, err := c.Delete(ctx, &task.DeleteRequest{Id: id, ExecId: execID})
		return err
	})
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrShimGone) {
		s.runtime.log.Warn("exec is not forgotten", "sandbox", s.sandbox, "container", id, "exec", execID, "error", err)
	}
}

// capture reads one output stream to its end and keeps its beginning.
type capture struct {
	conn  net.Conn
	limit int64
	ended chan struct{}

	// To be read once ended is closed.
	kept []byte
	more bool
}

// newCapture starts to read.
func newCapture(conn net.Conn, limit int64) *capture {
	c := &capture{conn: conn, limit: limit, ended: make(chan struct{})}
	go c.read()
	return c
}

// openStream connects to the stdio socket and waits until the shim has the stream registered.
func (s *Shim) openStream(ctx context.Context, header shimapi.StreamHeader) (net.Conn, error) {
	conns, err := s.openStreams(ctx, header.ID, header.ExecID, header.Stream)
	if err != nil {
		return nil, err
	}
	return conns[0], nil
}

// openStreams connects several streams, and only then waits for the shim, which has them all to look at when it wakes up.
func (s *Shim) openStreams(ctx context.Context, id, execID string, streams ...shimapi.Stream) (conns []net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, streamLimit)
	defer cancel()
	stream := streams[0]
	defer func() {
		if err != nil {
			closeAll(conns)
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			conns, err = nil, fmt.Errorf("connect %s: %w", stream, err)
		}
	}()
	for _, stream = range streams {
		conn, err := dial(ctx, shimapi.StdioSocketPath(s.dir))
		if err != nil {
			return conns, err
		}
		conns = append(conns, conn)
	}
	stop := context.AfterFunc(ctx, func() { closeAll(conns) }) // wakes whoever reads or writes
	for i, conn := range conns {
		stream = streams[i]
		if err = shimapi.WriteStreamHeader(conn, shimapi.StreamHeader{ID: id, ExecID: execID, Stream: stream}); err != nil {
			break
		}
	}
	for i := 0; i < len(conns) && err == nil; i++ {
		stream = streams[i]
		err = shimapi.ReadStreamAnswer(conns[i])
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	return conns, err
}

func closeAll(conns []net.Conn) {
	for _, conn := range conns {
		conn.Close()
	}
}

var captureBuffers = sync.Pool{New: func() any { buffer := make([]byte, 32<<10); return &buffer }}

// read goes on beyond the limit, and drops what it reads: the command must not block on a full pipe.
func (c *capture) read() {
	defer close(c.ended)
	buffer := captureBuffers.Get().(*[]byte)
	defer captureBuffers.Put(buffer)
	for {
		n, err := c.conn.Read(*buffer)
		take := min(int64(n), c.limit-int64(len(c.kept)))
		c.kept = append(c.kept, (*buffer)[:take]...)
		c.more = c.more || take < int64(n)
		if err != nil {
			return
		}
	}
}

// finish returns the output when the stream has ended, or what there is when limit has.
func (c *capture) finish(limit context.Context) (output []byte, truncated bool) {
	select {
	case <-c.ended:
		return slices.Clip(c.kept), c.more
	case <-limit.Done():
		c.close()
		return slices.Clip(c.kept), true
	}
}

// close hangs up and waits for the reader.
func (c *capture) close() {
	c.conn.Close()
	<-c.ended
}
