// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/linux/reaper"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// ContainerdConfig is what the shim of a containerd needs.
type ContainerdConfig struct {
	// Socket is the path of the socket that ServiceFD listens on; it is removed at the end.
	Socket string
	// Namespace is containerd's, in which all containers are.
	Namespace string
	// Events is the path of containerd's socket for events; empty: nobody is told.
	Events  string
	Version string // of the build
	Log     *slog.Logger
}

// containerd is the service as containerd knows it. What Berth's own daemon does for its containers, the shim does here: it mounts root file
// systems, connects FIFOs, reads what a container uses and tells what happens.
type containerd struct {
	*service
	namespace string
	events    *publisher
}

// ServeContainerd serves containerd's Task API on the socket that `start` has made, until Shutdown.
func ServeContainerd(config ContainerdConfig) error {
	if err := reaper.CloseInherited(shimapi.ServiceFD + 1); err != nil {
		return err
	}
	calls, err := inheritedListener(shimapi.ServiceFD)
	if err != nil {
		return err
	}
	defer calls.Close()
	s, err := newService(config.Version, config.Log)
	if err != nil {
		return err
	}
	defer s.runtime.null.Close()
	c := &containerd{service: s, namespace: config.Namespace, events: newPublisher(config)}
	s.run(calls, nil, c.methods())
	if err := os.Remove(config.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		config.Log.Error("the socket stays", "err", err)
	}
	c.events.close()
	return nil
}

// methods are all that is served to containerd, of which older ones speak version 2, with the same messages.
func (c *containerd) methods() map[string]rpc.Method {
	own := map[string]rpc.Method{
		"Create":     rpc.Handle(c.Create),
		"Start":      rpc.Handle(c.Start),
		"Delete":     rpc.Handle(c.Delete),
		"Exec":       rpc.Handle(c.Exec),
		"State":      rpc.Handle(c.State),
		"Pause":      rpc.Handle(c.Pause),
		"Resume":     rpc.Handle(c.Resume),
		"Stats":      rpc.Handle(c.Stats),
		"Shutdown":   rpc.Handle(c.Shutdown),
		"Wait":       rpc.Handle(c.Wait),
		"Kill":       rpc.Handle(c.Kill),
		"Pids":       rpc.Handle(c.Pids),
		"ResizePty":  rpc.Handle(c.ResizePty),
		"CloseIO":    rpc.Handle(c.CloseIO),
		"Update":     rpc.Handle(c.Update),
		"Connect":    rpc.Handle(c.Connect),
		"Checkpoint": later("checkpoints are not available from this shim"),
	}
	all := make(map[string]rpc.Method, 2*len(own))
	for name, method := range own {
		all[shimapi.TaskServiceName+"/"+name] = method
		all["containerd.task.v2.Task/"+name] = method
	}
	return all
}

// Create makes a container, with its root file system.
func (c *containerd) Create(_ context.Context, req *wire.CreateTaskRequest) (*wire.PIDResponse, error) {
	t, err := c.newTask(req)
	if err != nil {
		return nil, err
	}
	if err := c.add(t); err != nil {
		return nil, err
	}
	if err = c.create(t, req); err != nil {
		c.remove(t)
		return nil, err
	}
	pid := uint32(t.init.pid())
	c.events.publish("/tasks/create", "TaskCreate", &wire.TaskCreate{
		ContainerID: t.id, Bundle: t.bundle, Rootfs: req.Rootfs, PID: pid,
		IO: wire.TaskIO{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Terminal: req.Terminal},
	})
	go c.announceExit(t, t.init, t.id)
	return &wire.PIDResponse{PID: pid}, nil
}

// newTask checks a request.
func (c *containerd) newTask(req *wire.CreateTaskRequest) (*task, error) {
	if err := checkID("container", req.ID); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(req.Bundle) {
		return nil, rpc.Errorf(rpc.InvalidArgument, "bundle %q is not an absolute path", req.Bundle)
	}
	if req.Checkpoint != "" || req.ParentCheckpoint != "" {
		return nil, rpc.Errorf(rpc.Unimplemented, "restoring a checkpoint is not available from this shim")
	}
	options, createArgs, err := RuncOptions(req.Options, c.namespace)
	if err != nil {
		return nil, rpc.Errorf(rpc.InvalidArgument, "options: %v", err)
	}
	options.Stdin = req.Stdin != ""
	return &task{
		id: req.ID, bundle: filepath.Clean(req.Bundle), options: options, createArgs: createArgs, slog: c.log, runtime: c.runtime, oom: &c.oom,
		init: newProcess(), paths: &streamPaths{req.Stdin, req.Stdout, req.Stderr},
	}, nil
}

// create takes back what it has done when it fails.
func (c *containerd) create(t *task, req *wire.CreateTaskRequest) error {
	if err := writeOptions(t.bundle, t.options); err != nil {
		return err
	}
	if err := mountElsewhere(c.runtime.reaper, c.runtime.null, req); err != nil {
		return err
	}
	err := t.paths.open(&t.clients, req.Terminal)
	if err == nil {
		err = t.create()
	}
	if err != nil {
		t.clients.hangUp()
		return errors.Join(err, unmountRootfs(t.bundle))
	}
	return nil
}

// Start starts a container or an exec.
func (c *containerd) Start(ctx context.Context, req *wire.ProcessRequest) (*wire.PIDResponse, error) {
	if req.ExecID != "" {
		return c.startExec(req)
	}
	t, err := c.find(req.ID)
	if err != nil {
		return nil, err
	}
	t.init.news.begin()
	resp, err := c.service.Start(ctx, req)
	if err == nil {
		c.events.publish("/tasks/start", "TaskStart", &wire.TaskStart{ContainerID: t.id, PID: resp.PID})
	}
	t.init.news.end()
	return resp, err
}

// announceExit waits for a process's exit and tells containerd, after all that it was told of its start. id is the container's for its init.
func (c *containerd) announceExit(t *task, p *process, id string) {
	<-p.exited
	exit := p.status()
	if exit.at.IsZero() {
		return // deleted without having been started
	}
	p.news.wait()
	t.mu.Lock()
	oom := t.oomKilled && p == t.init
	t.mu.Unlock()
	if oom {
		c.events.publish("/tasks/oom", "TaskOOM", &wire.TaskEvent{ContainerID: t.id})
	}
	c.events.publish("/tasks/exit", "TaskExit", &wire.TaskExit{
		ContainerID: t.id, ID: id, PID: uint32(exit.pid), ExitStatus: exit.code, ExitedAt: exit.at,
	})
}

// Delete forgets a process that has ended; with the init, the container and its root file system.
func (c *containerd) Delete(ctx context.Context, req *wire.ProcessRequest) (*wire.DeleteResponse, error) {
	t, p, err := c.findProcess(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	if req.ExecID == "" {
		if p.ended() {
			p.flush() // the client reads until the end before it lets us delete; should it not, it loses the rest
		}
	} else if e, err := t.findExec(req.ExecID); err == nil && e.forgo() {
		p.finish(exitStatus{})
	}
	resp, err := c.service.Delete(ctx, req)
	if err != nil {
		return nil, err
	}
	if req.ExecID == "" {
		for _, e := range t.allExecs() {
			if e.forgo() { // whoever waits for it waits in vain
				e.process.finish(exitStatus{})
			}
		}
		if err := unmountRootfs(t.bundle); err != nil {
			return nil, err
		}
	}
	c.events.publish("/tasks/delete", "TaskDelete", &wire.TaskDelete{
		ContainerID: t.id, PID: resp.PID, ExitStatus: resp.ExitStatus, ExitedAt: resp.ExitedAt, ID: req.ExecID,
	})
	return resp, nil
}

// State tells where the streams are, too.
func (c *containerd) State(ctx context.Context, req *wire.ProcessRequest) (*wire.StateResponse, error) {
	resp, err := c.service.State(ctx, req)
	if err != nil {
		return nil, err
	}
	t, err := c.find(req.ID)
	if err != nil {
		return nil, err
	}
	paths := t.paths
	if req.ExecID != "" {
		e, err := t.findExec(req.ExecID)
		if err != nil {
			return nil, err
		}
		paths, resp.Terminal = e.paths, e.tty
	}
	resp.Stdin, resp.Stdout, resp.Stderr = paths[0], paths[1], paths[2]
	return resp, nil
}

// Pause freezes the container.
func (c *containerd) Pause(ctx context.Context, req *wire.ProcessRequest) (*wire.Empty, error) {
	resp, err := c.service.Pause(ctx, req)
	if err == nil {
		c.events.publish("/tasks/paused", "TaskPaused", &wire.TaskEvent{ContainerID: req.ID})
	}
	return resp, err
}

// Resume thaws the container.
func (c *containerd) Resume(ctx context.Context, req *wire.ProcessRequest) (*wire.Empty, error) {
	resp, err := c.service.Resume(ctx, req)
	if err == nil {
		c.events.publish("/tasks/resumed", "TaskResumed", &wire.TaskEvent{ContainerID: req.ID})
	}
	return resp, err
}

// Shutdown ends the shim unless it has containers: containerd asks after each one of a group.
func (c *containerd) Shutdown(_ context.Context, req *wire.ShutdownRequest) (*wire.Empty, error) {
	c.end(req.Now)
	return empty, nil
}
