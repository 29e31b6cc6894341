// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// pendingExec is what Task.Exec has told of an exec that Task.Start starts.
type pendingExec struct {
	mu      sync.Mutex
	process []byte // nil: started, or given up
}

// claim takes the process, once.
func (p *pendingExec) claim() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	process := p.process
	p.process = nil
	return process
}

// forgo gives an exec up that was not started, and tells whether it was so.
func (e *exec) forgo() bool { return e.pending.claim() != nil }

// Exec makes a process known, which Start starts.
func (c *containerd) Exec(_ context.Context, req *wire.ExecProcessRequest) (*wire.Empty, error) {
	if err := checkID("exec", req.ExecID); err != nil {
		return nil, err
	}
	if req.Spec.TypeURL != shimapi.ProcessTypeURL || len(req.Spec.Value) == 0 {
		return nil, rpc.Errorf(rpc.InvalidArgument, "exec %s: process is of type %q, not %q", req.ExecID, req.Spec.TypeURL, shimapi.ProcessTypeURL)
	}
	t, err := c.find(req.ID)
	if err != nil {
		return nil, err
	}
	e := newExec(req.ExecID)
	e.tty, e.paths, e.pending = req.Terminal, &streamPaths{req.Stdin, req.Stdout, req.Stderr}, &pendingExec{process: req.Spec.Value}
	if err := t.addExec(e); err != nil {
		return nil, err
	}
	c.events.publish("/tasks/exec-added", "TaskExecAdded", &wire.TaskExec{ContainerID: t.id, ExecID: e.id})
	return empty, nil
}

func (c *containerd) startExec(req *wire.ProcessRequest) (*wire.PIDResponse, error) {
	t, err := c.find(req.ID)
	if err != nil {
		return nil, err
	}
	e, err := t.findExec(req.ExecID)
	if err != nil {
		return nil, err
	}
	process := e.pending.claim()
	if process == nil {
		return nil, rpc.Errorf(rpc.FailedPrecondition, "exec %s of container %s was started already", e.id, t.id)
	}
	if err = t.require(running, "exec in"); err == nil {
		err = e.paths.open(&e.clients, e.tty)
	}
	var pid int
	if err == nil {
		pid, err = t.runExec(e, process)
	}
	if err != nil {
		e.clients.hangUp()
		e.process.finish(exitStatus{code: startFailed, at: time.Now()})
		return nil, err
	}
	c.events.publish("/tasks/exec-started", "TaskExecStarted", &wire.TaskExec{ContainerID: t.id, ExecID: e.id, PID: uint32(pid)})
	go c.announceExit(t, e.process, e.id)
	return &wire.PIDResponse{PID: uint32(pid)}, nil
}
