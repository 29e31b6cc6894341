// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-run/berth/internal/shimapi"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

// TestACheckpointLeavesTheContainerAsItWas holds with CRIU and, where there is none, without: then the OCI runtime's words come back.
func TestACheckpointLeavesTheContainerAsItWas(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "trap 'echo alive' USR1; echo begun; while :; do sleep 0.1; done"})
	s.awaitOutput(id, "begun")
	dir := t.TempDir()
	checkpoint := func(id, path string) error {
		_, err := s.task.Checkpoint(s.ctx, &taskpb.CheckpointTaskRequest{Id: id, Path: path})
		return err
	}
	_, noCRIU := osexec.LookPath("criu")
	for _, paused := range []bool{false, true} {
		if paused {
			if _, err := s.task.Pause(s.ctx, &taskpb.PauseRequest{Id: id}); err != nil {
				t.Fatal(err)
			}
		}
		err := checkpoint(id, dir)
		switch {
		case noCRIU != nil:
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), "criu") {
				t.Errorf("without CRIU: %v", err)
			}
		case err != nil:
			log, _ := os.ReadFile(filepath.Join(dir, "dump.log"))
			t.Errorf("paused %v: %v\n%s", paused, err, log)
		default:
			if _, err := os.Stat(filepath.Join(dir, shimapi.CheckpointImages, "inventory.img")); err != nil {
				t.Error(err)
			}
		}
		if state, err := s.task.State(s.ctx, &taskpb.StateRequest{Id: id}); err != nil || (state.Status.String() == "PAUSED") != paused {
			t.Errorf("paused %v: %v, %v", paused, state, err)
		}
	}
	if _, err := s.task.Resume(s.ctx, &taskpb.ResumeRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	s.kill(id, 10) // SIGUSR1
	s.awaitOutput(id, "alive")

	for name, c := range map[string]struct {
		err  error
		code codes.Code
	}{
		"not absolute": {checkpoint(id, "dir"), codes.InvalidArgument},
		"unknown":      {checkpoint("nobody", dir), codes.NotFound},
	} {
		if status.Code(c.err) != c.code {
			t.Errorf("%s: %v, want %v", name, c.err, c.code)
		}
	}
	s.kill(id, 9)
	s.wait(id, "")
	if err := checkpoint(id, dir); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("of a container that has ended: %v", err)
	}
}
