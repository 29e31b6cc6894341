// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berth-run/berth/internal/shimapi"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

func TestTerminal(t *testing.T) {
	s := startShim(t)
	c := testContainer{script: "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done", terminal: true}
	for _, created := range []bool{false, true} {
		c.created = created
		id := s.run(c)
		s.awaitOutput(id, "ready\r\n")
		if _, err := s.task.ResizePty(s.ctx, &taskpb.ResizePtyRequest{Id: id, Width: 91, Height: 37}); err != nil {
			t.Fatal(err)
		}
		if code := s.wait(id, ""); code != 0 {
			t.Errorf("code %d", code)
		}
		if out := s.output(id); !strings.HasSuffix(out, "37 91\r\n") {
			t.Errorf("output %q", out)
		}
		_, err := os.Stat(filepath.Join(shimapi.BundlePath(s.dir, id), "console.sock"))
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("console socket: %v", err)
		}
	}
	id := s.run(testContainer{script: "exit 0"})
	s.wait(id, "")
	_, err := s.task.ResizePty(s.ctx, &taskpb.ResizePtyRequest{Id: id, Width: 1, Height: 1})
	wantCode(t, "resize without a terminal", err, codes.FailedPrecondition)
}

func TestStdinIsAnEmptyFileOrAPipe(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "cat; echo done"})
	s.wait(id, "")
	if out := s.output(id); out != "done\n" {
		t.Errorf("output %q", out)
	}
	id = s.run(testContainer{script: "echo ready; cat; echo done", stdin: true})
	s.awaitOutput(id, "ready")
	time.Sleep(50 * time.Millisecond)
	if out := s.output(id); out != "ready\n" {
		t.Errorf("stdin was closed: %q", out)
	}
	if _, err := s.task.CloseIO(s.ctx, &taskpb.CloseIORequest{Id: id, Stdin: true}); err != nil {
		t.Fatal(err)
	}
	s.wait(id, "")
	if out := s.output(id); out != "ready\ndone\n" {
		t.Errorf("output %q", out)
	}
}

func TestPauseAndResume(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	state := func() string {
		t.Helper()
		resp, err := s.task.State(s.ctx, &taskpb.StateRequest{Id: id})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Status.String()
	}
	if _, err := s.task.Pause(s.ctx, &taskpb.PauseRequest{Id: id}); err != nil || state() != "PAUSED" {
		t.Fatalf("%v, %s", err, state())
	}
	if _, err := s.task.Resume(s.ctx, &taskpb.ResumeRequest{Id: id}); err != nil || state() != "RUNNING" {
		t.Fatalf("%v, %s", err, state())
	}
	if _, err := s.task.Pause(s.ctx, &taskpb.PauseRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	s.kill(id, syscall.SIGKILL) // a frozen process would not die of it
	if code := s.wait(id, ""); code != 137 {
		t.Errorf("code %d", code)
	}
}

func TestUpdate(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000", memory: 64 << 20})
	update := func(id, url, value string) error {
		_, err := s.task.Update(s.ctx, &taskpb.UpdateTaskRequest{Id: id, Resources: &anypb.Any{TypeUrl: url, Value: []byte(value)}})
		return err
	}
	if err := update(id, shimapi.LinuxResourcesTypeURL, `{"pids":{"limit":37}}`); err != nil {
		t.Fatal(err)
	}
	limit, err := os.ReadFile(filepath.Join(s.pidsCgroup(), id, "pids.max"))
	if err != nil || string(limit) != "37\n" {
		t.Errorf("pids.max %q, %v", limit, err)
	}
	wantCode(t, "update with another type", update(id, "x", `{}`), codes.InvalidArgument)
	if err := update(id, shimapi.LinuxResourcesTypeURL, `{"pids":`); err == nil || !strings.Contains(err.Error(), "runc update: unexpected EOF") {
		t.Errorf("broken JSON: %v", err)
	}
}
