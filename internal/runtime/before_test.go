// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	"github.com/berth-run/berth/internal/shimapi/task"
)

// execBefore lets the fake, which is from before leases told exits, run an "exec": run writes to the connections, Wait has the exit, Delete forgets.
func execBefore(f *fakeShim, run func(stdout, stderr net.Conn) uint32) (forgotten *atomic.Int32) {
	forgotten = new(atomic.Int32)
	var ended chan uint32
	f.exec = func(req *shimpb.ExecRequest) error {
		stdout, stderr := f.stream(req, shimapi.Stdout), f.stream(req, shimapi.Stderr)
		ended = make(chan uint32, 1)
		f.group.Go(func() {
			code := run(stdout, stderr)
			ended <- code
			time.Sleep(10 * time.Millisecond) // the exit was often told before the last of the output
			stdout.Close()
			stderr.Close()
		})
		return nil
	}
	f.wait = func(ctx context.Context, _ *task.WaitRequest) (*task.WaitResponse, error) {
		select {
		case code := <-ended:
			return exited(code), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.delete = func(req *task.DeleteRequest) error { forgotten.Add(1); return nil }
	return forgotten
}

func TestAnExecInAPodWhoseShimIsOlder(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r)
	f.before = true
	f.serve()
	shim := f.connect(r)
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	talk := func(stdout, stderr net.Conn) uint32 {
		for range 8 {
			stdout.Write(chunk)
		}
		stderr.Write([]byte("oops"))
		return 42
	}
	forgotten := execBefore(f, talk)
	result, err := shim.ExecSync(timeout(t, 20*time.Second), "c", ExecRequest{})
	if err != nil || len(result.Stdout) != 8<<20 || string(result.Stderr) != "oops" || result.ExitCode != 42 || result.Truncated || forgotten.Load() != 1 {
		t.Errorf("%d bytes, %q, code %d, truncated %v, forgotten %d times, %v", len(result.Stdout), result.Stderr, result.ExitCode, result.Truncated, forgotten.Load(), err)
	}
	result, err = shim.ExecSync(timeout(t, 20*time.Second), "c", ExecRequest{Limit: 10})
	if err != nil || len(result.Stdout) != 10 || !result.Truncated {
		t.Errorf("limited: %d bytes, truncated %v, %v", len(result.Stdout), result.Truncated, err)
	}
	var out, errOut bytes.Buffer
	code, err := shim.Exec(timeout(t, 20*time.Second), "c", []byte("{}"), Session{Stdout: &out, Stderr: &errOut, Stdin: strings.NewReader("")})
	if err != nil || code != 42 || out.Len() != 8<<20 || errOut.String() != "oops" || forgotten.Load() != 3 {
		t.Errorf("session: code %d, %d bytes, %q, forgotten %d times, %v", code, out.Len(), errOut.String(), forgotten.Load(), err)
	}
}

func TestAnExecInAPodWhoseShimIsOlderIsKilledAtItsTimeout(t *testing.T) {
	leakCheck(t)
	r := newRuntime(t, Config{})
	f := listenAs(t, r)
	f.before = true
	f.serve()
	dead := make(chan struct{})
	execBefore(f, func(stdout, _ net.Conn) uint32 { io.WriteString(stdout, "before"); <-dead; return 137 })
	f.kill = func(*task.KillRequest) error {
		select {
		case <-dead:
		default:
			close(dead)
		}
		return nil
	}
	result, err := f.connect(r).ExecSync(timeout(t, 20*time.Second), "c", ExecRequest{Timeout: time.Second})
	want(t, "timeout", err, ErrExecTimeout, "exec in container c: exec timed out after 1s")
	if string(result.Stdout) != "before" {
		t.Errorf("output until then: %q", result.Stdout)
	}
}
