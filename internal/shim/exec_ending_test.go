// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

// TestExecInAContainerThatEnds: whatever the OCI runtime stumbles over, the container is not running.
func TestExecInAContainerThatEnds(t *testing.T) {
	s := startShim(t)
	failed := 0
	for round := range 15 {
		id := s.run(testContainer{script: "sleep 1000"})
		var execs sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			execs.Go(func() {
				time.Sleep(time.Duration(i) * 4 * time.Millisecond)
				_, errs[i] = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: fmt.Sprint(i), Process: mustJSON(t, s.process(false, "true"))})
			})
		}
		time.Sleep(time.Duration(round) * 2 * time.Millisecond)
		if _, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, Signal: uint32(syscall.SIGKILL), All: round%2 == 0}); err != nil {
			t.Fatal(err)
		}
		execs.Wait()
		for _, err := range errs {
			if err != nil {
				failed++
			}
			if code := status.Code(err); code != codes.OK && code != codes.FailedPrecondition {
				t.Errorf("round %d: %v", round, err)
			}
		}
		s.wait(id, "")
		s.delete(id)
	}
	if failed == 0 {
		t.Error("no exec met the end of its container")
	}
}

// TestAnExecWithoutItsTerminalIsEnded has an OCI runtime that starts a process, and leaves the terminal to somebody who hangs up.
func TestAnExecWithoutItsTerminalIsEnded(t *testing.T) {
	s := startShim(t)
	script := `#!/bin/sh
all="$*"
case "$all" in *' exec '*)
	while [ "$1" != --pid-file ]; do shift; done
	setsid sleep 1012 &
	echo $! > "$2"
	until [ -e %[2]s ]; do sleep 0.01; done
	exit 0;;
esac
exec %[1]s "$@"
`
	hungUp := filepath.Join(s.logs, "hung-up")
	runc := filepath.Join(s.logs, "runc")
	if err := os.WriteFile(runc, fmt.Appendf(nil, script, s.runc, hungUp), 0o755); err != nil {
		t.Fatal(err)
	}
	s.runc = runc
	id := s.run(testContainer{script: "sleep 1000"})
	dialed := make(chan error, 1)
	go func() {
		conn, err := net.Dial("unix", filepath.Join(shimapi.BundlePath(s.dir, id), "console-e2"))
		for ; err != nil && s.ctx.Err() == nil; conn, err = net.Dial("unix", filepath.Join(shimapi.BundlePath(s.dir, id), "console-e2")) {
			time.Sleep(time.Millisecond)
		}
		if err == nil {
			err = conn.Close()
		}
		dialed <- errors.Join(err, os.WriteFile(hungUp, nil, 0o600))
	}()
	e, err := s.tryExec(id, false, true, "sh")
	if err := <-dialed; err != nil {
		t.Fatal(err)
	}
	if err == nil || e.id != "e2" {
		t.Fatalf("exec %s: %v", e.id, err)
	}
	s.receive(e.stdout, 10*time.Second)
	if children, err := proc.Children(s.cmd.Process.Pid); err != nil || len(children) != 1 { // the container's init
		t.Errorf("children of the shim: %v, %v", children, err)
	}
}
