// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
)

// session runs a command with a client that takes its output from the pipe.
func (p *pod) session(ctx context.Context, id, script string) (output *io.PipeReader, done <-chan sessionEnd) {
	p.Helper()
	spec, err := json.Marshal(process("sh", "-c", script))
	if err != nil {
		p.Fatal(err)
	}
	output, stdout := io.Pipe()
	p.Cleanup(func() { output.Close() })
	ended := make(chan sessionEnd, 1)
	go func() {
		code, err := p.shim.Exec(ctx, id, spec, Session{Stdout: stdout})
		stdout.Close()
		ended <- sessionEnd{code, err}
	}()
	return output, ended
}

type sessionEnd struct {
	code int
	err  error
}

// tailSize is more than a socket takes, but not more than it, the pipe behind it and what both copy from take together. It differs from run to run, so
// that another run's command is not mistaken for this one's.
var tailSize = 290_000 + os.Getpid()%1000

// sayTail says so much.
func sayTail() string { return fmt.Sprintf("yes | head -c %d", tailSize) }

// ended waits until a session's command has ended with much of its output on the way.
func (p *pod) ended(output io.Reader) {
	p.Helper()
	if _, err := output.Read(make([]byte, 1)); err != nil {
		p.Fatal(err)
	}
	eventually(p.T, "the command's end", func() bool {
		found, err := proc.Find(func(args []string) bool {
			return len(args) == 3 && args[0] == "head" && args[2] == strconv.Itoa(tailSize)
		})
		return err == nil && len(found) == 0
	})
	time.Sleep(100 * time.Millisecond) // for the shell around it, mostly
}

func TestRealSessionGetsAllOutputHoweverLateItReads(t *testing.T) {
	p := startPod(t, "")
	p.run("c1", "sleep 1000")
	output, done := p.session(timeout(t, 30*time.Second), "c1", sayTail()+"; exit 4")
	p.ended(output)
	all, err := io.ReadAll(output)
	if end := <-done; err != nil || end.err != nil || end.code != 4 || len(all) < tailSize-1 {
		t.Errorf("%d bytes, %v, %+v", len(all), err, end)
	}
	p.end("c1")
}

// TestRealSessionWhoseOutputIsCutOffIsNoSuccess: its command has ended well, but what it said is lost with the container, or the shim.
func TestRealSessionWhoseOutputIsCutOffIsNoSuccess(t *testing.T) {
	for name, c := range map[string]struct {
		cut  func(*pod) error
		want error
	}{
		"the container is removed": {func(p *pod) error { p.end("c1"); return nil }, errCut},
		"the shim is killed": {func(p *pod) error {
			ctx := timeout(p.T, 20*time.Second)
			return errors.Join(p.KillShim(ctx, testSandbox), p.KillLeftOver(ctx, "runc", "c1", shimapi.BundlePath(p.podDir(testSandbox), "c1")))
		}, ErrShimGone},
	} {
		t.Run(name, func(t *testing.T) {
			p := startPod(t, "")
			p.run("c1", "sleep 1000")
			output, done := p.session(timeout(t, 30*time.Second), "c1", sayTail())
			p.ended(output)
			if err := c.cut(p); err != nil {
				t.Fatal(err)
			}
			all, _ := io.ReadAll(output)
			end := <-done
			if len(all) == 0 || len(all) >= tailSize-1 {
				t.Errorf("%d bytes were passed on: this test is about a part", len(all))
			}
			want(t, "the session", end.err, c.want, "exec in container c1")
		})
	}
}
