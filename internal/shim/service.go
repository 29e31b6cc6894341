// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/berth-run/berth/internal/linux/memfd"
	"github.com/berth-run/berth/internal/linux/pty"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// maxTasks bounds the containers of a pod.
	maxTasks = 256
	// maxID bounds container and exec ids: they become file names.
	maxID = 128
)

// service implements containerd.task.v3.Task, and (in info.go) berth.shim.v1.Shim. A handler does its work to the end whatever
// becomes of the caller; only Wait gives up with it.
type service struct {
	version string
	log     *slog.Logger
	runtime *ociRuntime
	streams *streams
	ending  chan struct{} // closed by Shutdown

	oom oomLedger

	leaving atomic.Bool // endSoon is under way

	mu    sync.Mutex
	tasks map[string]*task
	ended bool // no new tasks
}

// Create makes a container, or only what Start needs to make it.
func (s *service) Create(_ context.Context, req *wire.CreateTaskRequest) (*wire.PIDResponse, error) {
	t, err := s.newTask(req)
	if err != nil {
		return nil, err
	}
	if err := s.add(t); err != nil {
		return nil, err
	}
	if err := t.create(); err != nil {
		s.remove(t)
		return nil, err
	}
	return &wire.PIDResponse{PID: uint32(t.init.pid())}, nil
}

// newTask checks a request.
func (s *service) newTask(req *wire.CreateTaskRequest) (*task, error) {
	if err := checkID("container", req.ID); err != nil {
		return nil, err
	}
	switch {
	case !filepath.IsAbs(req.Bundle):
		return nil, rpc.Errorf(rpc.InvalidArgument, "bundle %q is not an absolute path", req.Bundle)
	case len(req.Rootfs) > 0:
		return nil, rpc.Errorf(rpc.Unimplemented, "mounting the root file system is the caller's work")
	case req.ParentCheckpoint != "":
		return nil, rpc.Errorf(rpc.Unimplemented, "checkpoints that stand on others are not available")
	case req.Checkpoint != "" && !filepath.IsAbs(req.Checkpoint):
		return nil, rpc.Errorf(rpc.InvalidArgument, "checkpoint %q is not an absolute path", req.Checkpoint)
	case req.Stdin != "" || req.Stdout != "" || req.Stderr != "":
		return nil, rpc.Errorf(rpc.Unimplemented, "stdio over FIFOs is not available yet: give a log_path in the options")
	case req.Options.TypeURL != shimapi.CreateOptionsTypeURL:
		return nil, rpc.Errorf(rpc.InvalidArgument, "options are of type %q, not %q", req.Options.TypeURL, shimapi.CreateOptionsTypeURL)
	}
	var options wire.CreateOptions
	if err := wire.Unmarshal(req.Options.Value, &options); err != nil {
		return nil, rpc.Errorf(rpc.InvalidArgument, "options: %v", err)
	}
	for name, path := range map[string]string{"runtime": options.Runtime, "runtime_root": options.RuntimeRoot} {
		if !filepath.IsAbs(path) {
			return nil, rpc.Errorf(rpc.InvalidArgument, "options: %s %q is not an absolute path", name, path)
		}
	}
	if options.LogPath != "" && !filepath.IsAbs(options.LogPath) {
		return nil, rpc.Errorf(rpc.InvalidArgument, "options: log_path %q is not an absolute path", options.LogPath)
	}
	if req.Checkpoint != "" && !(options.Deferred && options.Native) {
		return nil, rpc.Errorf(rpc.Unimplemented, "a checkpoint is restored by Start, and only of processes of this kernel")
	}
	return &task{
		id: req.ID, bundle: filepath.Clean(req.Bundle), checkpointed: req.Checkpoint, options: &options, slog: s.log, runtime: s.runtime, oom: &s.oom, init: newProcess(),
	}, nil
}

// checkID refuses what is no plain file name.
func checkID(kind, id string) error {
	if id == "" || len(id) > maxID || id == "." || id == ".." || strings.ContainsAny(id, "/\x00") {
		return rpc.Errorf(rpc.InvalidArgument, "%s id %.200q is not acceptable", kind, id)
	}
	return nil
}

func (s *service) add(t *task) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return rpc.Errorf(rpc.FailedPrecondition, "the shim is ending")
	case s.tasks[t.id] != nil:
		return rpc.Errorf(rpc.AlreadyExists, "container %s exists", t.id)
	case len(s.tasks) >= maxTasks:
		return rpc.Errorf(rpc.ResourceExhausted, "the pod has %d containers", maxTasks)
	}
	s.tasks[t.id] = t
	return nil
}

func (s *service) remove(t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tasks[t.id] == t {
		delete(s.tasks, t.id)
	}
}

func (s *service) find(id string) (*task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tasks[id]; ok {
		return t, nil
	}
	return nil, rpc.Errorf(rpc.NotFound, "container %s is not known", id)
}

// findProcess returns the init, or the exec if exec is not empty.
func (s *service) findProcess(id, exec string) (*task, *process, error) {
	t, err := s.find(id)
	if err != nil {
		return nil, nil, err
	}
	if exec == "" {
		return t, t.init, nil
	}
	e, err := t.findExec(exec)
	if err != nil {
		return nil, nil, err
	}
	return t, e.process, nil
}

// all returns the tasks in no particular order.
func (s *service) all() []*task {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*task, 0, len(s.tasks))
	for _, t := range s.tasks {
		all = append(all, t)
	}
	return all
}

var empty = &wire.Empty{}

// Start starts a container.
func (s *service) Start(_ context.Context, req *wire.ProcessRequest) (*wire.PIDResponse, error) {
	if req.ExecID != "" {
		return nil, rpc.Errorf(rpc.Unimplemented, "starting an exec by Task.Start is not available yet: use berth.shim.v1.Shim.Exec")
	}
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if err := t.start(); err != nil {
		return nil, err
	}
	return &wire.PIDResponse{PID: uint32(t.init.pid())}, nil
}

// Wait answers when the process has ended; it alone ends with its caller.
func (s *service) Wait(ctx context.Context, req *wire.ProcessRequest) (*wire.WaitResponse, error) {
	_, p, err := s.findProcess(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		exit := p.status()
		if exit.at.IsZero() {
			return nil, rpc.Errorf(rpc.NotFound, "container %s was deleted without having been started", req.ID)
		}
		return &wire.WaitResponse{ExitStatus: exit.code, ExitedAt: exit.at}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Kill signals a process, or with all everything that belongs to it.
func (s *service) Kill(_ context.Context, req *wire.KillRequest) (*wire.Empty, error) {
	if req.Signal > 64 {
		return nil, rpc.Errorf(rpc.InvalidArgument, "there is no signal %d", req.Signal)
	}
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	sig := syscall.Signal(req.Signal)
	if req.ExecID == "" {
		return empty, t.kill(sig, req.All)
	}
	e, err := t.findExec(req.ExecID)
	if err != nil {
		return nil, err
	}
	return empty, e.kill(t, sig, req.All)
}

// Delete forgets a process that has ended, and the runtime's container with the init.
func (s *service) Delete(_ context.Context, req *wire.ProcessRequest) (*wire.DeleteResponse, error) {
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	var exit exitStatus
	if req.ExecID == "" {
		if exit, err = t.delete(); err != nil {
			return nil, err
		}
		s.remove(t)
	} else {
		e, err := t.findExec(req.ExecID)
		if err != nil {
			return nil, err
		}
		if !e.process.ended() {
			return nil, rpc.Errorf(rpc.FailedPrecondition, "exec %s is still running", req.ExecID)
		}
		e.process.flush()
		e.process.closeStreams()
		e.release()
		t.removeExec(e)
		exit = e.process.status()
	}
	return &wire.DeleteResponse{PID: uint32(exit.pid), ExitStatus: exit.code, ExitedAt: exit.at}, nil
}

// State tells how a process is.
func (s *service) State(_ context.Context, req *wire.ProcessRequest) (*wire.StateResponse, error) {
	t, p, err := s.findProcess(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	resp := &wire.StateResponse{ID: req.ID, ExecID: req.ExecID, Bundle: t.bundle, PID: uint32(p.pid()), Status: wire.StatusRunning}
	if resp.PID == 0 {
		resp.Status = wire.StatusCreated
	}
	p.mu.Lock()
	resp.Terminal = p.terminal != nil
	p.mu.Unlock()
	if req.ExecID == "" {
		resp.Status = t.status()
		resp.Terminal = t.spec.terminal
	}
	if p.ended() {
		exit := p.status()
		resp.Status, resp.ExitStatus, resp.ExitedAt = wire.StatusStopped, exit.code, exit.at
	}
	return resp, nil
}

// status is the phase in containerd's words.
func (t *task) status() wire.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch t.phase {
	case running:
		if t.paused {
			return wire.StatusPaused
		}
		return wire.StatusRunning
	case stopped, deleting:
		return wire.StatusStopped
	default:
		return wire.StatusCreated
	}
}

// Pids lists the processes of the container's cgroup.
func (s *service) Pids(_ context.Context, req *wire.ProcessRequest) (*wire.PidsResponse, error) {
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	pids, err := t.group().pids()
	if err != nil {
		return nil, err
	}
	resp := &wire.PidsResponse{}
	for _, pid := range pids {
		resp.Processes = append(resp.Processes, wire.ProcessInfo{PID: uint32(pid)})
	}
	return resp, nil
}

// Pause freezes the container.
func (s *service) Pause(_ context.Context, req *wire.ProcessRequest) (*wire.Empty, error) {
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	return empty, t.freeze("pause", true)
}

// Resume thaws the container.
func (s *service) Resume(_ context.Context, req *wire.ProcessRequest) (*wire.Empty, error) {
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	return empty, t.freeze("resume", false)
}

// ResizePty sets the size of a process's terminal.
func (s *service) ResizePty(_ context.Context, req *wire.ResizePtyRequest) (*wire.Empty, error) {
	_, p, err := s.findProcess(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	terminal := p.terminal
	p.mu.Unlock()
	if terminal == nil {
		return nil, rpc.Errorf(rpc.FailedPrecondition, "the process has no terminal")
	}
	return empty, pty.SetSize(terminal, uint16(min(req.Width, 1<<16-1)), uint16(min(req.Height, 1<<16-1)))
}

// CloseIO is an end of file on the process's stdin.
func (s *service) CloseIO(_ context.Context, req *wire.CloseIORequest) (*wire.Empty, error) {
	_, p, err := s.findProcess(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	if !req.Stdin {
		return empty, nil
	}
	for _, pump := range p.allPumps() {
		if _, ok := pump.sink.(*stdinSink); ok {
			pump.drain() // what has been sent is delivered first
		}
	}
	p.closeStdin()
	return empty, nil
}

// Update changes the resources of a container.
func (s *service) Update(_ context.Context, req *wire.UpdateTaskRequest) (*wire.Empty, error) {
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if req.Resources.TypeURL != shimapi.LinuxResourcesTypeURL {
		return nil, rpc.Errorf(rpc.InvalidArgument, "resources are of type %q, not %q", req.Resources.TypeURL, shimapi.LinuxResourcesTypeURL)
	}
	file, err := memfd.New("resources", req.Resources.Value)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return empty, t.update(file)
}

// Connect tells the pids.
func (s *service) Connect(_ context.Context, req *wire.ProcessRequest) (*wire.ConnectResponse, error) {
	resp := &wire.ConnectResponse{ShimPID: uint32(os.Getpid()), Version: s.version}
	if t, err := s.find(req.ID); err == nil {
		resp.TaskPID = uint32(t.init.pid())
	}
	return resp, nil
}

// Shutdown ends the shim.
func (s *service) Shutdown(_ context.Context, req *wire.ShutdownRequest) (*wire.Empty, error) {
	if !s.end(req.Now) {
		return nil, rpc.Errorf(rpc.FailedPrecondition, "the shim has containers")
	}
	return empty, nil
}

// later answers what is not there yet.
func later(what string) rpc.Method {
	return func(context.Context, []byte) (wire.Message, error) {
		return nil, rpc.Errorf(rpc.Unimplemented, "%s", what)
	}
}

// methods are all that is served.
func (s *service) methods() map[string]rpc.Method {
	const task, shim = shimapi.TaskServiceName + "/", shimapi.ShimServiceName + "/"
	return map[string]rpc.Method{
		task + "Create":     rpc.Handle(s.Create),
		task + "Start":      rpc.Handle(s.Start),
		task + "Wait":       rpc.Handle(s.Wait),
		task + "Kill":       rpc.Handle(s.Kill),
		task + "Delete":     rpc.Handle(s.Delete),
		task + "State":      rpc.Handle(s.State),
		task + "Pids":       rpc.Handle(s.Pids),
		task + "Pause":      rpc.Handle(s.Pause),
		task + "Resume":     rpc.Handle(s.Resume),
		task + "ResizePty":  rpc.Handle(s.ResizePty),
		task + "CloseIO":    rpc.Handle(s.CloseIO),
		task + "Update":     rpc.Handle(s.Update),
		task + "Connect":    rpc.Handle(s.Connect),
		task + "Shutdown":   rpc.Handle(s.Shutdown),
		task + "Exec":       later("Task.Exec is not available yet: use berth.shim.v1.Shim.Exec"),
		task + "Checkpoint": rpc.Handle(s.Checkpoint),
		task + "Stats":      later("stats are not available from the shim: read them from the container's cgroup"),
		shim + "Info":       rpc.Handle(s.Info),
		shim + "ReopenLog":  rpc.Handle(s.ReopenLog),
		shim + "Exec":       rpc.Handle(s.Exec),
		// What the foreign shim of this pod, if it has one, would tell containerd. What counts of it, its containers' stand-ins wait for; without
		// a taker it would keep events and try again.
		"containerd.services.events.ttrpc.v1.Events/Forward": rpc.Handle(func(context.Context, *wire.Empty) (*wire.Empty, error) { return &wire.Empty{}, nil }),
	}
}
