// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	"github.com/berth-run/berth/internal/shimapi/task"
)

const testSandbox = "5a9db0c1e2"

// leakCheck fails the test if it leaves goroutines or descriptors.
func leakCheck(t *testing.T) {
	t.Helper()
	fds := func() []string {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, entry := range entries {
			if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil {
				names = append(names, entry.Name()+" → "+target)
			}
		}
		return names
	}
	// The poller's descriptors come with the first use and stay.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	goroutines, before := goruntime.NumGoroutine(), fds()
	t.Cleanup(func() {
		deadline := time.Now().Add(3 * time.Second)
		for goruntime.NumGoroutine() > goroutines || len(fds()) > len(before) {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				stacks = stacks[:goruntime.Stack(stacks, true)]
				t.Fatalf("leak: %d goroutines, were %d; descriptors %v, were %v\n%s", goruntime.NumGoroutine(), goroutines, fds(), before, stacks)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// newRuntime is on a state folder of its own, with scripts for binaries unless cfg names others.
func newRuntime(t *testing.T, cfg Config) *Runtime {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = shortDir(t)
	}
	if cfg.ShimPath == "" {
		cfg.ShimPath = script(t, "exec sleep 60")
	}
	if cfg.Handlers == nil {
		cfg.Handlers = map[string]Handler{"runc": {Path: script(t, "exit 0"), Native: true}}
	}
	r, err := New(cfg, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// shortDir is a temporary folder with room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-rt-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// fakeShim is a shim in this process. Its fields are to be set before it is asked.
type fakeShim struct {
	task.TaskService // nil: calls that are not faked panic, which ttrpc turns into a lost test

	t      *testing.T
	dir    string
	calls  net.Listener
	stdio  net.Listener
	server *ttrpc.Server
	group  sync.WaitGroup

	create  func(*task.CreateTaskRequest) error
	start   func() (uint32, error)
	wait    func(context.Context, *task.WaitRequest) (*task.WaitResponse, error)
	kill    func(*task.KillRequest) error
	delete  func(*task.DeleteRequest) error
	exec    func(*shimpb.ExecRequest) error
	info    func() (*shimpb.InfoResponse, error)
	goodbye func(now bool) error

	before bool // it is from before leases told exits and brought pipes

	gone chan struct{} // closed when it dies

	mu      sync.Mutex
	conns   []net.Conn
	streams map[shimapi.StreamHeader]net.Conn
	pipes   map[shimapi.StreamHeader][]*os.File
}

// listenAs makes the sandbox's sockets, as StartShim does.
func listenAs(t *testing.T, r *Runtime) *fakeShim {
	t.Helper()
	f := &fakeShim{t: t, dir: r.podDir(testSandbox), gone: make(chan struct{}),
		streams: make(map[shimapi.StreamHeader]net.Conn), pipes: make(map[shimapi.StreamHeader][]*os.File)}
	if err := makeDir(f.dir); err != nil {
		t.Fatal(err)
	}
	for path, listener := range map[string]*net.Listener{shimapi.SocketPath(f.dir): &f.calls, shimapi.StdioSocketPath(f.dir): &f.stdio} {
		file, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if *listener, err = net.FileListener(file); err != nil {
			t.Fatal(err)
		}
		file.Close()
	}
	t.Cleanup(f.die)
	return f
}

// serve serves both sockets.
func (f *fakeShim) serve() *fakeShim {
	f.t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		f.t.Fatal(err)
	}
	f.server = server
	task.RegisterTaskService(server, f)
	shimpb.RegisterShimService(server, (*fakeShimService)(f))
	f.group.Add(2)
	go func() { defer f.group.Done(); server.Serve(context.Background(), tracked{f.calls, f}) }()
	go func() { defer f.group.Done(); f.serveStdio() }()
	return f
}

// tracked remembers accepted connections, so that they can be cut.
type tracked struct {
	net.Listener
	f *fakeShim
}

func (l tracked) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.f.mu.Lock()
		l.f.conns = append(l.f.conns, conn)
		l.f.mu.Unlock()
	}
	return conn, err
}

// cut breaks all connections; the shim goes on listening.
func (f *fakeShim) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, conn := range f.conns {
		conn.Close()
	}
	f.conns = nil
}

// die is what kill -9 does to a shim.
func (f *fakeShim) die() {
	f.calls.Close()
	f.stdio.Close()
	f.cut()
	f.mu.Lock()
	select {
	case <-f.gone:
	default:
		close(f.gone)
	}
	f.mu.Unlock()
	if f.server != nil {
		f.server.Close()
	}
	f.group.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, conn := range f.streams {
		conn.Close()
	}
	for _, pipes := range f.pipes {
		for _, p := range pipes {
			p.Close() // again, mostly
		}
	}
}

func (f *fakeShim) serveStdio() {
	for {
		conn, err := f.stdio.Accept()
		if err != nil {
			return
		}
		rights := sock.NewRights(conn.(*net.UnixConn), shimapi.PipesOfLease)
		header, err := shimapi.ReadStreamHeader(rights)
		var pipes []*os.File
		for _, fd := range rights.Take() {
			pipes = append(pipes, os.NewFile(uintptr(fd), "pipe"))
		}
		if err != nil {
			f.t.Errorf("stream header: %v", err)
			conn.Close()
			continue
		}
		tells := header.Exit && !f.before
		header.Pipes, header.Exit = false, false
		if f.before { // it knows of no pipes: the kernel drops what nobody takes
			for _, p := range pipes {
				p.Close()
			}
			pipes = nil
		}
		if header.ExecID == "refused" {
			for _, p := range pipes {
				p.Close()
			}
			_ = shimapi.WriteStreamAnswer(conn, errors.New("too many streams")) // the client's test fails otherwise
			conn.Close()
			continue
		}
		f.mu.Lock() // before the answer, after which the client may ask for what uses it
		old := f.streams[header]
		f.streams[header] = conn
		f.pipes[header] = pipes
		f.mu.Unlock()
		if old != nil { // the lease of an earlier exec of this ID
			old.Close()
		}
		if tells {
			err = shimapi.WriteLeaseAnswer(conn)
		} else {
			err = shimapi.WriteStreamAnswer(conn, nil)
		}
		if err != nil {
			conn.Close()
		}
	}
}

// stream is the exec's stream, which its client has connected before.
func (f *fakeShim) stream(req *shimpb.ExecRequest, stream shimapi.Stream) net.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streams[shimapi.StreamHeader{ID: req.Id, ExecID: req.ExecId, Stream: stream}]
}

// outputs are the pipes that the client has sent for the exec, with its lease.
func (f *fakeShim) outputs(req *shimpb.ExecRequest) (stdout, stderr *os.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	pipes := f.pipes[shimapi.StreamHeader{ID: req.Id, ExecID: req.ExecId, Stream: shimapi.Lease}]
	return pipes[0], pipes[1]
}

func (f *fakeShim) Create(_ context.Context, req *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	return &task.CreateTaskResponse{}, f.create(req)
}

func (f *fakeShim) Start(context.Context, *task.StartRequest) (*task.StartResponse, error) {
	pid, err := f.start()
	return &task.StartResponse{Pid: pid}, err
}

func (f *fakeShim) Wait(ctx context.Context, req *task.WaitRequest) (*task.WaitResponse, error) {
	return f.wait(ctx, req)
}

func (f *fakeShim) Kill(_ context.Context, req *task.KillRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.kill(req)
}

func (f *fakeShim) Delete(_ context.Context, req *task.DeleteRequest) (*task.DeleteResponse, error) {
	return &task.DeleteResponse{}, f.delete(req)
}

func (f *fakeShim) Shutdown(_ context.Context, req *task.ShutdownRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.goodbye(req.Now)
}

type fakeShimService fakeShim

func (f *fakeShimService) Info(context.Context, *emptypb.Empty) (*shimpb.InfoResponse, error) {
	return f.info()
}

func (f *fakeShimService) ReopenLog(context.Context, *shimpb.ReopenLogRequest) (*emptypb.Empty, error) {
	return nil, status.Error(codes.NotFound, "container is not known")
}

func (f *fakeShimService) Exec(_ context.Context, req *shimpb.ExecRequest) (*shimpb.ExecResponse, error) {
	return &shimpb.ExecResponse{Pid: 7}, f.exec(req)
}

func (f *fakeShim) connect(r *Runtime) *Shim {
	f.t.Helper()
	shim, err := r.ConnectShim(timeout(f.t, 5*time.Second), testSandbox)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { shim.Close() })
	return shim
}

// hang is a call that gets no answer. ttrpc does not end a handler's context with its connection.
func (f *fakeShim) hang(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-f.gone:
	}
	return status.Error(codes.Unavailable, "the end")
}

func exited(code uint32) *task.WaitResponse {
	return &task.WaitResponse{ExitStatus: code, ExitedAt: timestamppb.New(time.Unix(1000, 0))}
}

func writeExit(t *testing.T, r *Runtime, id string, fact shimapi.ExitFact) {
	t.Helper()
	bundle := shimapi.BundlePath(r.podDir(testSandbox), id)
	if err := makeDir(bundle); err != nil {
		t.Fatal(err)
	}
	if err := shimapi.WriteExitFact(bundle, fact); err != nil {
		t.Fatal(err)
	}
}

// want fails the test unless err is target and mentions text.
func want(t *testing.T, what string, err, target error, text string) {
	t.Helper()
	if !errors.Is(err, target) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v; want %v with %q", what, err, target, text)
	}
}
