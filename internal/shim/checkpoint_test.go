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

// TestWhatIsRestoredGoesOn where it was when it was checkpointed, under another ID, with streams, a log and a cgroup of its own. Without CRIU the start
// fails, and nothing is left of it.
func TestWhatIsRestoredGoesOn(t *testing.T) {
	const counting = "trap 'echo alive' USR1; i=0; while :; do i=$((i+1)); echo count $i; sleep 0.1; done"
	_, noCRIU := osexec.LookPath("criu")
	for name, c := range map[string]testContainer{
		"pipes":    {script: counting},
		"terminal": {script: counting, terminal: true},
		"stdin":    {script: "read a; echo first $a; read b; echo second $b; " + counting, stdin: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := startShim(t)
			dir := t.TempDir()
			if noCRIU == nil {
				id := s.run(c)
				begun := "count 3"
				if c.stdin {
					s.say(id, "one\n")
					begun = "first one"
				}
				s.awaitOutput(id, begun)
				if err := os.WriteFile(filepath.Join(dir, shimapi.CRIUConfig), []byte("tcp-close\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := s.task.Checkpoint(s.ctx, &taskpb.CheckpointTaskRequest{Id: id, Path: dir}); err != nil {
					log, _ := os.ReadFile(filepath.Join(dir, "dump.log"))
					t.Fatalf("%v\n%s", err, log)
				}
				s.kill(id, 9)
				s.wait(id, "")
				s.delete(id)
			}
			c.checkpoint = dir
			id := s.create(c)
			if noCRIU != nil {
				if _, err := s.task.Start(s.ctx, &taskpb.StartRequest{Id: id}); err == nil || !strings.Contains(strings.ToLower(err.Error()), "criu") {
					t.Errorf("without CRIU: %v", err)
				}
				s.wait(id, "")
				s.delete(id)
				return
			}
			if _, err := s.task.Start(s.ctx, &taskpb.StartRequest{Id: id}); err != nil {
				log, _ := os.ReadFile(filepath.Join(dir, "restore.log"))
				t.Fatalf("%v\n%s", err, log)
			}
			if c.stdin {
				s.say(id, "two\n")
				s.awaitOutput(id, "second two")
			}
			s.awaitOutput(id, "count 5")
			if out := s.output(id); !c.stdin && strings.Contains(out, "count 1\n") || strings.Contains(out, "first") {
				t.Errorf("it has begun anew:\n%s", out)
			}
			s.kill(id, 10) // SIGUSR1
			s.awaitOutput(id, "alive")
			s.kill(id, 9)
			if code := s.wait(id, ""); code != 137 {
				t.Errorf("exit code %d", code)
			}
			s.delete(id)
		})
	}
}

// say sends text to a container's stdin.
func (s *testShim) say(id, text string) {
	s.Helper()
	in, err := s.stream(id, "", shimapi.Stdin)
	if err != nil {
		s.Fatal(err)
	}
	defer in.Close()
	if _, err := in.Write([]byte(text)); err != nil {
		s.Fatal(err)
	}
}

// TestOnlyOurOwnCheckpointsLeaveOutCgroups: others are for any runtime, and made by any runc.
func TestOnlyOurOwnCheckpointsLeaveOutCgroups(t *testing.T) {
	dir := t.TempDir()
	args, env := criu(dir)
	if strings.Contains(strings.Join(args, " "), "cgroups") || env != nil {
		t.Errorf("for others: %q, %q", args, env)
	}
	config := filepath.Join(dir, shimapi.CRIUConfig)
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args, env = criu(dir)
	if !strings.HasSuffix(strings.Join(args, " "), "--manage-cgroups-mode ignore") || len(env) != 1 || env[0] != "CRIU_CONFIG_FILE="+config {
		t.Errorf("our own: %q, %q", args, env)
	}
}
