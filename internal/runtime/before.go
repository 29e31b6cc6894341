// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/task"
)

// A pod's shim is as old as the pod. What is here is for those that do not tell an exec's exit over its lease and take no pipes with it: output comes over connections,
// the exit by Task v3's Wait, and Delete has the shim forget the exec.

const (
	// relayLimit bounds the wait for output once the command has ended. The shim hangs up by itself well before, even if a background child of the command keeps the pipe.
	relayLimit = 5 * time.Second
	// forgetLimit bounds what an exec's caller waits for the shim to forget it.
	forgetLimit = time.Second
)

// relay copies an exec's output from the shim's connections into the pipes that were meant for the command itself.
type relay struct {
	conns [2]*net.UnixConn
	ended chan struct{}
}

// newRelay opens the connections. The pipes are the relay's from then on, also when it fails.
func (s *Shim) newRelay(ctx context.Context, id, execID string, pipes []int) (*relay, error) {
	r := &relay{ended: make(chan struct{})}
	var files [2]*os.File
	for i, fd := range pipes {
		files[i] = os.NewFile(uintptr(fd), "pipe")
	}
	for i, stream := range []shimapi.Stream{shimapi.Stdout, shimapi.Stderr} {
		conn, err := s.openStream(ctx, shimapi.StreamHeader{ID: id, ExecID: execID, Stream: stream})
		if err != nil {
			r.hangUp()
			return nil, errors.Join(err, files[0].Close(), files[1].Close())
		}
		r.conns[i] = conn
	}
	var copies sync.WaitGroup
	for i, file := range files {
		copies.Go(func() {
			defer file.Close()
			_, _ = io.Copy(onlyWriter{file}, onlyReader{r.conns[i]}) // its end is the output's, however it comes
		})
	}
	go func() {
		copies.Wait()
		close(r.ended)
	}()
	return r, nil
}

// finish waits until all output is in the pipes.
func (r *relay) finish() {
	limit := time.NewTimer(relayLimit)
	defer limit.Stop()
	select {
	case <-r.ended:
	case <-limit.C:
	}
}

func (r *relay) hangUp() {
	for _, conn := range r.conns {
		if conn != nil {
			conn.Close()
		}
	}
}

// close hangs up and waits for the copies. Preconditions: the pipes' other ends are closed.
func (r *relay) close() {
	r.hangUp()
	<-r.ended
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

// runBefore is run's end.
func (e *execSession) runBefore(ctx context.Context) (int, error) {
	code, err := e.shim.waitExec(ctx, e.id, e.execID)
	if err != nil {
		return 0, err
	}
	e.outputs.Wait()
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	e.shim.forgetExec(context.WithoutCancel(ctx), e.id, e.execID)
	return code, nil
}
