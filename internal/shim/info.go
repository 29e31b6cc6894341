// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"os"

	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
)

// Info tells all about all tasks.
func (s *service) Info(context.Context, *wire.Empty) (*wire.InfoResponse, error) {
	resp := &wire.InfoResponse{Version: s.version, PID: int32(os.Getpid())}
	for _, t := range s.all() {
		resp.Tasks = append(resp.Tasks, t.info())
	}
	return resp, nil
}

// info reads the exit only when the phase says that it is known.
func (t *task) info() wire.TaskInfo {
	t.mu.Lock()
	phase, oomKilled := t.phase, t.oomKilled
	t.mu.Unlock()
	info := wire.TaskInfo{ID: t.id, PID: int32(t.init.pid())}
	if t.log != nil {
		info.LogBytesDropped = t.log.dropped.Load()
	}
	switch phase {
	case creating, created, starting:
		info.Status = wire.PhaseCreated
	case running:
		info.Status = wire.PhaseRunning
	case stopped, deleting:
		info.Status = wire.PhaseStopped
	}
	if t.init.ended() {
		exit := t.init.status()
		info.Status, info.ExitStatus, info.ExitedAt = wire.PhaseStopped, exit.code, exit.at
		info.OOMKilled = oomKilled
	}
	return info
}

// ReopenLog goes over to a new log file after a rotation.
func (s *service) ReopenLog(_ context.Context, req *wire.ProcessRequest) (*wire.Empty, error) {
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if err := t.usable("reopen log of"); err != nil {
		return nil, err
	}
	return empty, t.log.reopen()
}

// usable tells that the task is neither half made nor half gone.
func (t *task) usable(operation string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase == creating || t.phase == deleting {
		return t.wrongPhaseLocked(operation)
	}
	return nil
}

// Exec starts a process in a running container.
func (s *service) Exec(_ context.Context, req *wire.ExecRequest) (*wire.PIDResponse, error) {
	pid, err := s.exec(req)
	if err != nil {
		s.streams.refuseExec(req.ID, req.ExecID) // what came for it has nothing to wait for
		return nil, err
	}
	return &wire.PIDResponse{PID: uint32(pid)}, nil
}

func (s *service) exec(req *wire.ExecRequest) (pid int, err error) {
	if err := checkID("exec", req.ExecID); err != nil {
		return 0, err
	}
	t, err := s.find(req.ID)
	if err != nil {
		return 0, err
	}
	if len(req.Process) == 0 {
		return 0, rpc.Errorf(rpc.InvalidArgument, "exec %s has no process", req.ExecID)
	}
	return t.startExec(req, s.streams)
}
