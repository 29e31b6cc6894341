// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	"github.com/berth-run/berth/internal/shimapi/task"
)

func TestConnectTellsThatAShimIsGone(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	_, err := r.ConnectShim(timeout(t, time.Second), testSandbox)
	want(t, "no folder", err, ErrShimGone, testSandbox)
	listenAs(t, r).die()
	_, err = r.ConnectShim(timeout(t, time.Second), testSandbox)
	want(t, "nobody listens", err, ErrShimGone, testSandbox)
	for _, id := range []string{"", "..", "a/b", "-x"} {
		_, err := r.ConnectShim(timeout(t, time.Second), id)
		want(t, "sandbox "+id, err, ErrInvalid, "")
	}
}

func TestAShimThatHangsHoldsNobodyLongerThanTheDeadline(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r) // accepts nothing: as when it is stopped
	shim := f.connect(r)
	begin := time.Now()
	_, err := shim.Info(timeout(t, 50*time.Millisecond))
	want(t, "Info", err, context.DeadlineExceeded, "ask shim")
	_, err = shim.ExecSync(timeout(t, 50*time.Millisecond), "c", ExecRequest{})
	want(t, "ExecSync", err, context.DeadlineExceeded, "exec in container c: connect ")
	if err := shim.Shutdown(timeout(t, 50*time.Millisecond), true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown = %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestABacklogThatIsFullIsWaitedOut(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	dir := r.podDir(testSandbox)
	if err := makeDir(dir); err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: shimapi.SocketPath(dir)}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := r.ConnectShim(timeout(t, time.Second), testSandbox)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, err = r.ConnectShim(timeout(t, 50*time.Millisecond), testSandbox)
	want(t, "second", err, context.DeadlineExceeded, "accepts no connection")
}

func TestAShimThatTalksGarbageIsBroken(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r)
	f.group.Add(1)
	go func() {
		defer f.group.Done()
		for {
			conn, err := f.calls.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 16))
			conn.Write([]byte("\x00\x00\x00\x05\x00\x00\x00\x01\x02\x00no rpc at all"))
			conn.Close()
		}
	}()
	shim := f.connect(r)
	_, err := shim.Info(timeout(t, 5*time.Second))
	if err == nil || errors.Is(err, ErrShimGone) {
		t.Errorf("Info = %v; want an error, but not that the shim is gone", err)
	}
	ctx := timeout(t, 300*time.Millisecond)
	if _, err := shim.Wait(ctx, "c"); err == nil || errors.Is(err, ErrShimGone) {
		t.Errorf("Wait = %v", err)
	}
}

func TestErrorsCarryTheKindAndTheRuntimesText(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	shim := f.connect(r)
	ctx := timeout(t, 5*time.Second)
	kinds := map[codes.Code]error{codes.NotFound: ErrNotFound, codes.AlreadyExists: ErrExists, codes.FailedPrecondition: ErrState,
		codes.InvalidArgument: ErrInvalid, codes.Unimplemented: ErrUnsupported}
	for code, kind := range kinds {
		f.start = func() (uint32, error) {
			return 0, status.Error(code, `exec: "nope": executable file not found in $PATH`)
		}
		_, err := shim.Start(ctx, "c1")
		want(t, code.String(), err, kind, `start container c1: exec: "nope": executable file not found in $PATH`)
		var taskErr *TaskError
		if !errors.As(err, &taskErr) || taskErr.Op != "start" || taskErr.ID != "c1" {
			t.Errorf("%s: %#v", code, err)
		}
	}
	f.start = func() (uint32, error) { return 0, status.Error(codes.Unknown, "runc said no") }
	if _, err := shim.Start(ctx, "c1"); err == nil || !strings.HasSuffix(err.Error(), "runc said no") {
		t.Errorf("unknown code: %v", err)
	}
	f.delete = func(*task.DeleteRequest) error { return status.Error(codes.NotFound, "no") }
	if err := shim.Delete(ctx, "c1"); err != nil {
		t.Errorf("delete of an unknown container: %v", err)
	}
	want(t, "ReopenLog", shim.ReopenLog(ctx, "c1"), ErrNotFound, "reopen log of container c1")
}

func TestCreateSendsTheHandlersOptions(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: "/bin/sh", Root: "/r", SystemdCgroup: true, Native: true}}})
	f := listenAs(t, r).serve()
	shim := f.connect(r)
	var got *task.CreateTaskRequest
	f.create = func(req *task.CreateTaskRequest) error { got = req; return nil }
	err := shim.Create(timeout(t, 5*time.Second), CreateTask{ID: "c", Bundle: "/b", LogPath: "/l", Stdin: true, StdinOnce: true})
	if err != nil {
		t.Fatal(err)
	}
	var options shimpb.CreateOptions
	if err := proto.Unmarshal(got.Options.Value, &options); err != nil {
		t.Fatal(err)
	}
	wanted := &shimpb.CreateOptions{Runtime: "/bin/sh", RuntimeRoot: "/r", SystemdCgroup: true, Native: true, LogPath: "/l",
		Stdin: true, StdinOnce: true, Deferred: true}
	if got.Id != "c" || got.Bundle != "/b" || got.Options.TypeUrl != shimapi.CreateOptionsTypeURL || !proto.Equal(&options, wanted) {
		t.Errorf("request %v, options %v", got, &options)
	}
	want(t, "unknown handler", shim.Create(timeout(t, time.Second), CreateTask{ID: "c", Handler: "kata"}), ErrNoHandler, "kata")
}

func TestWaitGoesOnOverANewConnection(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	var calls atomic.Int32
	asked := make(chan struct{}, 8)
	f.wait = func(ctx context.Context, _ *task.WaitRequest) (*task.WaitResponse, error) {
		call := calls.Add(1)
		asked <- struct{}{}
		if call <= 4 { // more often than one call redials
			return nil, f.hang(ctx)
		}
		return exited(3), nil
	}
	shim := f.connect(r)
	go func() {
		for range 4 {
			<-asked
			f.cut()
		}
	}()
	writeExit(t, r, "c", shimapi.ExitFact{ID: "c", ExitCode: 3, OOMKilled: true, LogBytesDropped: 9})
	exit, err := shim.Wait(timeout(t, 10*time.Second), "c")
	if err != nil || exit.Code != 3 || !exit.OOMKilled || exit.LogBytesDropped != 9 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}

func TestWaitWhenTheShimDies(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	asked := make(chan struct{}, 2)
	f.wait = func(ctx context.Context, _ *task.WaitRequest) (*task.WaitResponse, error) {
		asked <- struct{}{}
		return nil, f.hang(ctx)
	}
	shim := f.connect(r)
	writeExit(t, r, "ended", shimapi.ExitFact{ID: "ended", ExitCode: 137, Signal: 9})
	go func() { <-asked; f.die() }()
	_, err := shim.Wait(timeout(t, 5*time.Second), "running")
	want(t, "without exit facts", err, ErrShimGone, "wait for container running")
	exit, err := shim.Wait(timeout(t, 5*time.Second), "ended")
	if err != nil || exit.Code != 137 || exit.Signal != 9 {
		t.Errorf("with exit facts: %+v, %v", exit, err)
	}
	_, err = shim.Start(timeout(t, 5*time.Second), "running")
	want(t, "Start", err, ErrShimGone, "start container running")
	if err := shim.Shutdown(timeout(t, 5*time.Second), false); err != nil {
		t.Errorf("Shutdown of a shim that is gone: %v", err)
	}
}

func TestWaitWithoutFactsOnDisk(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	f.wait = func(_ context.Context, req *task.WaitRequest) (*task.WaitResponse, error) {
		if req.Id == "unknown" {
			return nil, status.Error(codes.NotFound, "container unknown is not known")
		}
		return exited(137), nil
	}
	f.info = func() (*shimpb.InfoResponse, error) {
		return &shimpb.InfoResponse{Tasks: []*shimpb.TaskInfo{{Id: "c", OomKilled: true, LogBytesDropped: 5}}}, nil
	}
	shim := f.connect(r)
	exit, err := shim.Wait(timeout(t, 5*time.Second), "c")
	if err != nil || exit.Code != 137 || !exit.OOMKilled || exit.LogBytesDropped != 5 || !exit.ExitedAt.Equal(time.Unix(1000, 0)) {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	_, err = shim.Wait(timeout(t, 5*time.Second), "unknown")
	want(t, "unknown container", err, ErrNotFound, "unknown is not known")
}

func TestACallThatMayHaveWorkedIsNotRepeated(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	var starts, kills atomic.Int32
	f.start = func() (uint32, error) { starts.Add(1); f.cut(); return 1, nil }
	f.kill = func(*task.KillRequest) error {
		if kills.Add(1) == 1 {
			f.cut()
		}
		return nil
	}
	shim := f.connect(r)
	_, err := shim.Start(timeout(t, 5*time.Second), "c")
	want(t, "Start", err, ErrBroken, "start container c")
	if starts.Load() != 1 {
		t.Errorf("started %d times", starts.Load())
	}
	if err := shim.Kill(timeout(t, 5*time.Second), "c", 15, false); err != nil || kills.Load() != 2 {
		t.Errorf("Kill = %v after %d calls", err, kills.Load())
	}
}

func TestCloseSaysNothingAboutTheShim(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	asked := make(chan struct{})
	f.wait = func(ctx context.Context, _ *task.WaitRequest) (*task.WaitResponse, error) {
		close(asked)
		return nil, f.hang(ctx)
	}
	shim := f.connect(r)
	go func() { <-asked; shim.Close() }()
	_, err := shim.Wait(timeout(t, 5*time.Second), "c")
	want(t, "Wait", err, ErrClosed, "")
	if errors.Is(err, ErrShimGone) {
		t.Error("a closed connection counts as a dead shim")
	}
	_, err = shim.Info(timeout(t, 5*time.Second))
	want(t, "Info", err, ErrClosed, "")
}

func TestShutdownWaitsUntilNobodyListens(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	f.goodbye = func(now bool) error {
		if !now {
			return status.Error(codes.FailedPrecondition, "1 container is left")
		}
		f.group.Add(1)
		go func() { defer f.group.Done(); time.Sleep(50 * time.Millisecond); f.calls.Close() }()
		return nil
	}
	shim := f.connect(r)
	want(t, "with containers", shim.Shutdown(timeout(t, time.Second), false), ErrState, "1 container is left")
	if err := shim.Shutdown(timeout(t, 5*time.Second), true); err != nil {
		t.Fatal(err)
	}
	_, err := r.ConnectShim(timeout(t, time.Second), testSandbox)
	want(t, "afterwards", err, ErrShimGone, "")
}

func TestSocketPathsLongerThanTheKernelTakes(t *testing.T) {
	leakCheck(t)
	long := filepath.Join(shortDir(t), strings.Repeat("d", 120))
	r := newRuntime(t, Config{StateDir: long})
	f := listenAs(t, r).serve()
	f.info = func() (*shimpb.InfoResponse, error) { return &shimpb.InfoResponse{Version: "v", Pid: 4}, nil }
	info, err := f.connect(r).Info(timeout(t, 5*time.Second))
	if err != nil || info.Version != "v" || info.PID != 4 {
		t.Errorf("Info = %+v, %v", info, err)
	}
	stat, err := os.Lstat(shimapi.SocketPath(f.dir))
	if err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", stat, err)
	}
	if stat, err = os.Stat(f.dir); err != nil || stat.Mode().Perm() != 0o700 {
		t.Errorf("folder %v, %v", stat, err)
	}
}

// execOn lets the fake run an "exec" whose output is written by run in the background, which returns the exit code. What it leaves open stays so.
func execOn(f *fakeShim, run func(stdout, stderr *os.File) uint32) {
	f.exec = func(req *shimpb.ExecRequest) error {
		lease := f.stream(req, shimapi.Lease)
		stdout, stderr := f.outputs(req)
		f.group.Add(1)
		go func() {
			defer f.group.Done()
			code := run(stdout, stderr)
			select {
			case <-f.gone:
			default:
				_ = shimapi.WriteExecExit(lease, code) // the client may be gone: its matter
			}
		}()
		return nil
	}
	f.wait = func(ctx context.Context, _ *task.WaitRequest) (*task.WaitResponse, error) { return nil, f.hang(ctx) }
}

func TestExecSyncKeepsTheBeginningAndReadsAll(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	execOn(f, func(stdout, stderr *os.File) uint32 {
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 32 { // would block on a reader that stops at its limit
			stdout.Write(chunk)
		}
		stderr.Write([]byte("oops"))
		stdout.Close()
		stderr.Close()
		return 42
	})
	result, err := f.connect(r).ExecSync(timeout(t, 20*time.Second), "c", ExecRequest{Limit: 1000})
	if err != nil || len(result.Stdout) != 1000 || string(result.Stderr) != "oops" || result.ExitCode != 42 || !result.Truncated {
		t.Errorf("%d bytes, %q, code %d, truncated %v, %v", len(result.Stdout), result.Stderr, result.ExitCode, result.Truncated, err)
	}
}

// TestOutputBeforeTheExitIsKeptAndNothingElseWaitedFor: children that an exec leaves behind may hold its output for ever, or write for ever.
func TestOutputBeforeTheExitIsKeptAndNothingElseWaitedFor(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	shim := f.connect(r)
	all := bytes.Repeat([]byte("x"), 60<<10) // in one write, and nobody need read for that
	for range 50 {
		execOn(f, func(stdout, stderr *os.File) uint32 { stdout.Write(all); return 0 })
		begin := time.Now()
		result, err := shim.ExecSync(timeout(t, 20*time.Second), "c", ExecRequest{})
		if err != nil || !bytes.Equal(result.Stdout, all) || result.Truncated || time.Since(begin) > 10*time.Second {
			t.Fatalf("%d bytes, truncated %v, %v after %s", len(result.Stdout), result.Truncated, err, time.Since(begin))
		}
	}
	var child sync.WaitGroup
	execOn(f, func(stdout, stderr *os.File) uint32 {
		stderr.Write([]byte("said"))
		child.Go(func() {
			for err := error(nil); err == nil; _, err = stdout.Write(all) { // until nobody reads
			}
		})
		return 3
	})
	result, err := shim.ExecSync(timeout(t, 20*time.Second), "c", ExecRequest{})
	if err != nil || string(result.Stderr) != "said" || result.ExitCode != 3 {
		t.Errorf("%d bytes, %q, code %d, %v", len(result.Stdout), result.Stderr, result.ExitCode, err)
	}
	child.Wait()
}

// TestABrokenLeaseIsNotAnExit: the shim is asked over its other connection.
func TestABrokenLeaseIsNotAnExit(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	f.exec = func(req *shimpb.ExecRequest) error { return f.stream(req, shimapi.Lease).Close() }
	f.wait = func(context.Context, *task.WaitRequest) (*task.WaitResponse, error) { return exited(9), nil }
	result, err := f.connect(r).ExecSync(timeout(t, 20*time.Second), "c", ExecRequest{})
	if err != nil || result.ExitCode != 9 {
		t.Errorf("%+v, %v", result, err)
	}
}

func TestExecSyncKillsAtItsTimeoutOrWithItsCaller(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	shim := f.connect(r)
	run := func(ctx context.Context, limit time.Duration, begun func()) (ExecResult, error) {
		dead := make(chan struct{})
		execOn(f, func(stdout, stderr *os.File) uint32 {
			stdout.Write([]byte("before"))
			begun()
			<-dead
			stdout.Close()
			stderr.Close()
			return 137
		})
		var kills atomic.Int32
		f.kill = func(req *task.KillRequest) error {
			if req.ExecId != "e" || req.Signal != 9 || !req.All {
				t.Errorf("kill %v", req)
			}
			if kills.Add(1) == 1 {
				return status.Error(codes.FailedPrecondition, "process is not started")
			}
			if kills.Load() == 2 {
				close(dead)
			}
			return nil
		}
		return shim.ExecSync(ctx, "c", ExecRequest{ID: "e", Timeout: limit})
	}
	result, err := run(timeout(t, 20*time.Second), time.Second, func() {})
	want(t, "timeout", err, ErrExecTimeout, "exec in container c: exec timed out after 1s")
	if string(result.Stdout) != "before" {
		t.Errorf("output until then: %q", result.Stdout)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err = run(ctx, 0, func() { time.AfterFunc(50*time.Millisecond, cancel) }) // earlier, there is nothing to kill
	want(t, "caller gone", err, context.Canceled, "exec in container c")
}

func TestExecSyncFailures(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r).serve()
	shim := f.connect(r)
	ctx := timeout(t, 10*time.Second)
	_, err := shim.ExecSync(ctx, "c", ExecRequest{ID: "refused"})
	if err == nil || !strings.Contains(err.Error(), "too many streams") {
		t.Errorf("refused stream: %v", err)
	}
	f.exec = func(req *shimpb.ExecRequest) error {
		return status.Error(codes.Unknown, `exec: "nope": not found`)
	}
	_, err = shim.ExecSync(ctx, "c", ExecRequest{})
	if err == nil || !strings.Contains(err.Error(), `exec in container c: exec: "nope": not found`) {
		t.Errorf("exec that does not start: %v", err)
	}
	started := make(chan struct{})
	execOn(f, func(stdout, stderr *os.File) uint32 { close(started); <-f.gone; return 0 })
	go func() { <-started; f.die() }()
	_, err = shim.ExecSync(ctx, "c", ExecRequest{})
	want(t, "shim dies", err, ErrShimGone, "exec in container c")
}
