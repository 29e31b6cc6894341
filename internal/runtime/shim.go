// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"google.golang.org/protobuf/proto"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	"github.com/berth-run/berth/internal/shimapi/task"
	"github.com/berth-run/berth/internal/telemetry"
)

// maxRedials bounds how often one call is made again on a new connection.
const maxRedials = 2

// Shim is a pod's shim, seen from the daemon. Calls end with their context, whatever the shim does; they need
// a deadline where the caller cannot wait for ever. A broken connection is made anew: ErrShimGone is told
// only when nobody listens any more.
type Shim struct {
	runtime *Runtime
	sandbox string
	dir     string
	// launches holds one element for each exec that is being started.
	launches chan struct{}

	mu     sync.Mutex
	client *ttrpc.Client // nil: to be made when needed
	closed bool
}

// CreateTask describes a container to a shim.
type CreateTask struct {
	ID string
	// Bundle is the folder with config.json and, mounted, rootfs.
	Bundle string
	// Handler is the runtime handler's name; empty: the default one.
	Handler string
	// LogPath is the CRI log file; empty: output is read and dropped.
	LogPath string
	// LogFolder is the folder above it from which on no link is followed.
	LogFolder string
	// Stdin keeps a stdin for attach, which StdinOnce closes when the first client has gone.
	Stdin, StdinOnce bool
	// Checkpoint is the folder of a checkpoint, as Checkpoint has written it for its own, that Start restores in place of running the spec's process; empty: none. The
	// folder must stay until Start is done, and CRIU writes its log there.
	Checkpoint string
	// IOUID and IOGID own the pipes of its stdio: the host's IDs of the root of its user namespace, or 0.
	IOUID, IOGID uint32
}

// Info is what a shim tells about itself.
type Info struct {
	Version string
	PID     int
	Tasks   []*shimpb.TaskInfo
}

// ConnectShim finds the shim that an earlier daemon started. ErrShimGone if nobody listens. That a shim accepts a
// connection does not mean that it answers: ask for Info.
func (r *Runtime) ConnectShim(ctx context.Context, sandbox string) (*Shim, error) {
	if err := validID(sandbox); err != nil {
		return nil, fmt.Errorf("connect to shim of sandbox: %w", err)
	}
	shim, err := r.connect(ctx, sandbox)
	if err != nil {
		return nil, fmt.Errorf("shim of sandbox %s: %w", sandbox, err)
	}
	return shim, nil
}

func (r *Runtime) connect(ctx context.Context, sandbox string) (*Shim, error) {
	s := r.newShim(sandbox)
	if _, err := s.connection(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func (r *Runtime) newShim(sandbox string) *Shim {
	return &Shim{runtime: r, sandbox: sandbox, dir: r.podDir(sandbox), launches: make(chan struct{}, maxLaunches)}
}

// Close drops the connection; the shim stays. Calls under way end with ErrClosed.
func (s *Shim) Close() error {
	s.mu.Lock()
	client := s.client
	s.client, s.closed = nil, true
	s.mu.Unlock()
	if client == nil {
		return nil
	}
	return client.Close()
}

// connection returns a connection that worked when last heard of, or a new one. It dials without the lock; of two
// new ones the second is dropped.
func (s *Shim) connection(ctx context.Context) (*ttrpc.Client, error) {
	s.mu.Lock()
	client, closed := s.client, s.closed
	s.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if client != nil {
		return client, nil
	}
	conn, err := dial(ctx, shimapi.SocketPath(s.dir))
	if err != nil {
		return nil, err
	}
	fresh := ttrpc.NewClient(steadyConn{conn})
	s.mu.Lock()
	if s.client == nil && !s.closed {
		s.client = fresh
	}
	client, closed = s.client, s.closed
	s.mu.Unlock()
	if client != fresh {
		fresh.Close()
	}
	if closed {
		return nil, ErrClosed
	}
	return client, nil
}

// drop forgets a broken connection.
func (s *Shim) drop(client *ttrpc.Client) {
	s.mu.Lock()
	if s.client == client {
		s.client = nil
	}
	s.mu.Unlock()
	client.Close()
}

// again tells whether a call that may or may not have reached the shim can be made once more.
type again bool

const (
	once   again = false
	repeat again = true
)

// call makes one call. When the connection breaks under it, it is repeated where that does no harm; otherwise it
// is ErrShimGone or ErrBroken.
func (s *Shim) call(ctx context.Context, mode again, do func(*ttrpc.Client) error) error {
	for redials := 0; ; redials++ {
		client, err := s.connection(ctx)
		if err != nil {
			return err
		}
		if err = do(client); answered(err) {
			return err
		}
		s.drop(client)
		if mode == repeat && redials < maxRedials {
			continue
		}
		if _, probe := s.connection(ctx); probe != nil { // ErrShimGone, ErrClosed, or the end of ctx
			return probe
		}
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
}

// taskCall makes a call of the Task service and names it in errors.
func (s *Shim) taskCall(ctx context.Context, mode again, op, id string, do func(task.TaskService) error) error {
	ctx, span := telemetry.Start(ctx, "task", op)
	err := s.call(ctx, mode, func(client *ttrpc.Client) error { return do(task.NewTaskClient(client)) })
	span.End(err)
	return translate(op, id, err)
}

// Create makes the container known to the shim, which runs the OCI runtime only on Start: a wrong spec is reported
// by Start.
func (s *Shim) Create(ctx context.Context, t CreateTask) error {
	h, err := s.runtime.Handler(t.Handler)
	if err != nil {
		return translate("create", t.ID, err)
	}
	if t.Checkpoint != "" {
		if err = findCRIU(); err == nil {
			err = configureCRIU(t.Checkpoint)
		}
		if err != nil {
			return translate("create", t.ID, err)
		}
	}
	s.runtime.moves.Begin(s.runtime.cgroups) // Start follows, and with it the container's init into its cgroup
	options, err := proto.Marshal(&shimpb.CreateOptions{
		Runtime: h.Path, RuntimeRoot: h.Root, SystemdCgroup: h.SystemdCgroup, Native: h.Native, RuntimeArgs: h.Args,
		LogPath: t.LogPath, LogFolder: t.LogFolder, Stdin: t.Stdin, StdinOnce: t.StdinOnce, Deferred: true,
		IoUid: t.IOUID, IoGid: t.IOGID,
	})
	if err != nil {
		return translate("create", t.ID, err)
	}
	return s.taskCall(ctx, once, "create", t.ID, func(c task.TaskService) error {
		_, err := c.Create(ctx, &task.CreateTaskRequest{Id: t.ID, Bundle: t.Bundle, Checkpoint: t.Checkpoint,
			Options: &anypb.Any{TypeUrl: shimapi.CreateOptionsTypeURL, Value: options}})
		return err
	})
}

// Start runs the container's init and returns its process ID. The error has the OCI runtime's last message.
func (s *Shim) Start(ctx context.Context, id string) (pid int, err error) {
	err = s.taskCall(ctx, once, "start", id, func(c task.TaskService) error {
		resp, err := c.Start(ctx, &task.StartRequest{Id: id})
		pid = int(resp.GetPid())
		return err
	})
	return pid, err
}

// Kill signals the container's init, or all its processes. ErrNotFound if they have ended.
func (s *Shim) Kill(ctx context.Context, id string, signal int, all bool) error {
	return s.taskCall(ctx, repeat, "kill", id, func(c task.TaskService) error {
		_, err := c.Kill(ctx, &task.KillRequest{Id: id, Signal: uint32(signal), All: all})
		return err
	})
}

// Delete frees a container that has ended, or was never started. One that is not known is success.
func (s *Shim) Delete(ctx context.Context, id string) error {
	err := s.taskCall(ctx, repeat, "delete", id, func(c task.TaskService) error {
		_, err := c.Delete(ctx, &task.DeleteRequest{Id: id})
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Update changes the limits of a running container to the OCI runtime-spec's LinuxResources, given as JSON.
func (s *Shim) Update(ctx context.Context, id string, resources []byte) error {
	return s.taskCall(ctx, repeat, "update", id, func(c task.TaskService) error {
		_, err := c.Update(ctx, &task.UpdateTaskRequest{Id: id,
			Resources: &anypb.Any{TypeUrl: shimapi.LinuxResourcesTypeURL, Value: resources}})
		return err
	})
}

// Pids lists the container's processes.
func (s *Shim) Pids(ctx context.Context, id string) ([]int, error) {
	var pids []int
	err := s.taskCall(ctx, repeat, "list processes of", id, func(c task.TaskService) error {
		resp, err := c.Pids(ctx, &task.PidsRequest{Id: id})
		pids = pids[:0]
		for _, process := range resp.GetProcesses() {
			pids = append(pids, int(process.GetPid()))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return pids, nil
}

// ReopenLog makes the shim open the container's log path anew.
func (s *Shim) ReopenLog(ctx context.Context, id string) error {
	err := s.call(ctx, repeat, func(client *ttrpc.Client) error {
		_, err := shimpb.NewShimClient(client).ReopenLog(ctx, &shimpb.ReopenLogRequest{Id: id})
		return err
	})
	return translate("reopen log of", id, err)
}

// Info asks the shim for itself and its containers.
func (s *Shim) Info(ctx context.Context) (Info, error) {
	var info Info
	err := s.call(ctx, repeat, func(client *ttrpc.Client) error {
		resp, err := shimpb.NewShimClient(client).Info(ctx, &emptypb.Empty{})
		info = Info{Version: resp.GetVersion(), PID: int(resp.GetPid()), Tasks: resp.GetTasks()}
		return err
	})
	if err != nil {
		return Info{}, translate("ask shim", "", err)
	}
	return info, nil
}

// Shutdown ends the shim and waits until nobody listens. It is refused (ErrState) while there are containers, unless now
// is set: then the shim goes and they stay, for KillLeftOver. A shim that is gone is success.
func (s *Shim) Shutdown(ctx context.Context, now bool) error {
	err := s.taskCall(ctx, once, "shut down", "", func(c task.TaskService) error {
		_, err := c.Shutdown(ctx, &task.ShutdownRequest{Id: s.sandbox, Now: now})
		return err
	})
	if err != nil && !errors.Is(err, ErrShimGone) && !errors.Is(err, ErrBroken) {
		return err
	}
	for { // also after an answer that the shim's end cut off
		conn, err := dial(ctx, shimapi.SocketPath(s.dir))
		if errors.Is(err, ErrShimGone) {
			return s.Close()
		}
		if err != nil {
			return translate("shut down", "", err)
		}
		conn.Close()
		if !pause(ctx, 5*time.Millisecond) {
			return translate("shut down", "", fmt.Errorf("the shim still listens: %w", ctx.Err()))
		}
	}
}
