// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

func wantCode(t testing.TB, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestContainerLife(t *testing.T) {
	for name, created := range map[string]bool{"deferred": false, "create and start": true} {
		t.Run(name, func(t *testing.T) {
			s := startShim(t)
			id := s.create(testContainer{script: "echo out; echo err >&2; sleep 0.3; exit 7", created: created})
			if info := s.taskInfo(id); info.Status != shimpb.Status_CREATED || (info.Pid != 0) != created {
				t.Errorf("before the start: %v", info)
			}
			pid := s.start(id)
			_, err := s.task.Start(s.ctx, &taskpb.StartRequest{Id: id})
			wantCode(t, "second start", err, codes.FailedPrecondition)
			_, err = s.task.Delete(s.ctx, &taskpb.DeleteRequest{Id: id})
			wantCode(t, "delete while running", err, codes.FailedPrecondition)
			init, err := shimapi.ReadInitFact(shimapi.BundlePath(s.dir, id))
			if err != nil || init.PID != pid || !proc.Is(init.PID, init.StartTime) {
				t.Errorf("init fact %+v, %v", init, err)
			}
			if info := s.taskInfo(id); info.Status != shimpb.Status_RUNNING || int(info.Pid) != pid {
				t.Errorf("while running: %v", info)
			}
			if code := s.wait(id, ""); code != 7 {
				t.Errorf("exit code %d", code)
			}
			fact := s.exitFact(id)
			if fact.ID != id || fact.PID != pid || fact.ExitCode != 7 || fact.Signal != 0 || fact.OOMKilled || fact.ExitedAt.Before(fact.StartedAt) {
				t.Errorf("%+v", fact)
			}
			lines := readLog(t, s.logPath(id))
			if reassemble(lines, "stdout") != "out\n" || reassemble(lines, "stderr") != "err\n" {
				t.Errorf("log: %v", lines)
			}
			if info := s.taskInfo(id); info.Status != shimpb.Status_STOPPED || info.ExitStatus != 7 || !info.ExitedAt.AsTime().Equal(fact.ExitedAt) {
				t.Errorf("after the exit: %v", info)
			}
			_, err = s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, Signal: 15})
			wantCode(t, "kill after the exit", err, codes.NotFound)
			if resp := s.delete(id); resp.ExitStatus != 7 || int(resp.Pid) != pid {
				t.Errorf("delete: %v", resp)
			}
			_, err = s.task.Delete(s.ctx, &taskpb.DeleteRequest{Id: id})
			wantCode(t, "second delete", err, codes.NotFound)
		})
	}
}

func TestFastExits(t *testing.T) {
	s := startShim(t)
	var all sync.WaitGroup
	ids := make([]string, 12)
	for i := range ids {
		ids[i] = s.create(testContainer{script: fmt.Sprintf("echo last words; exit %d", i)})
	}
	for i, id := range ids {
		all.Go(func() {
			if _, err := s.task.Start(s.ctx, &taskpb.StartRequest{Id: id}); err != nil {
				t.Errorf("start: %v", err)
				return
			}
			resp, err := s.task.Wait(s.ctx, &taskpb.WaitRequest{Id: id})
			if err != nil || resp.ExitStatus != uint32(i) {
				t.Errorf("exit %v, %v, want %d", resp, err, i)
			}
			if out := s.output(id); out != "last words\n" {
				t.Errorf("log of %s: %q", id, out)
			}
		})
	}
	all.Wait()
}

func TestSignals(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done"})
	s.awaitOutput(id, "ready")
	s.kill(id, syscall.SIGTERM)
	if code := s.wait(id, ""); code != 3 || s.output(id) != "ready\ngot it\n" {
		t.Errorf("code %d, output %q", code, s.output(id))
	}
	id = s.run(testContainer{args: []string{"sleep", "100"}})
	s.kill(id, syscall.SIGKILL)
	if code := s.wait(id, ""); code != 137 || s.exitFact(id).Signal != 9 || s.exitFact(id).OOMKilled {
		t.Errorf("code %d, %+v", code, s.exitFact(id))
	}
	_, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, Signal: 99})
	wantCode(t, "signal 99", err, codes.InvalidArgument)
}

func TestCreatedContainerCanBeKilled(t *testing.T) {
	s := startShim(t)
	id := s.create(testContainer{script: "exit 0", created: true})
	s.kill(id, syscall.SIGKILL)
	if code := s.wait(id, ""); code != 137 {
		t.Errorf("code %d", code)
	}
	if fact := s.exitFact(id); !fact.StartedAt.IsZero() {
		t.Errorf("started at %v", fact.StartedAt)
	}
	deferred := s.create(testContainer{script: "exit 0"})
	_, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: deferred, Signal: 9})
	wantCode(t, "kill of what has no process", err, codes.FailedPrecondition)
	waited := make(chan error, 1)
	go func() {
		_, err := s.task.Wait(s.ctx, &taskpb.WaitRequest{Id: deferred})
		waited <- err
	}()
	time.Sleep(50 * time.Millisecond)
	s.delete(deferred)
	wantCode(t, "wait for what was never started", <-waited, codes.NotFound)
}

func TestOOMKillIsReported(t *testing.T) {
	s := startShim(t)
	for name, script := range map[string]string{"init": "exec tail /dev/zero", "child": "tail /dev/zero; exit 5"} {
		t.Run(name, func(t *testing.T) {
			id := s.run(testContainer{script: script, memory: 16 << 20})
			code := s.wait(id, "")
			if want := map[string]uint32{"init": 137, "child": 5}[name]; code != want {
				t.Errorf("code %d, want %d", code, want)
			}
			if !s.exitFact(id).OOMKilled || !s.taskInfo(id).OomKilled {
				t.Errorf("OOM kill is not reported: %+v", s.exitFact(id))
			}
		})
	}
}

func TestProcessesDoNotOutliveTheirContainer(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "setsid sleep 1000 & sleep 1000 & echo $!; sleep 0.2; exit 4", hostPID: true})
	if code := s.wait(id, ""); code != 4 {
		t.Errorf("code %d", code)
	}
	resp, err := s.task.Pids(s.ctx, &taskpb.PidsRequest{Id: id})
	if err != nil || len(resp.Processes) != 0 {
		t.Errorf("left: %v, %v", resp, err)
	}
	var pid int
	if _, err := fmt.Sscan(s.output(id), &pid); err != nil {
		t.Fatal(err)
	}
	if stat, err := proc.ReadStat(pid); err == nil && !stat.Ended() {
		t.Errorf("%+v is alive", stat)
	}
}

func TestExitIsNotHeldUpByAForeignHolderOfThePipe(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "echo begun; sleep 0.5; printf last"})
	pid := int(s.taskInfo(id).Pid)
	pipe, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", pid), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	s.wait(id, "")
	if late := time.Since(s.exitFact(id).ExitedAt); late > time.Second {
		t.Errorf("exit was reported %v late", late)
	}
	if out := s.output(id); out != "begun\nlast" {
		t.Errorf("log %q", out)
	}
	if _, err := pipe.WriteString("from behind\n"); err != nil {
		t.Fatal(err)
	}
	s.awaitOutput(id, "from behind\n")
	s.delete(id)
	if _, err := pipe.WriteString("x"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after delete: %v", err)
	}
}

func TestStartFailureCarriesTheRuntimesWords(t *testing.T) {
	for name, created := range map[string]bool{"deferred": false, "create and start": true} {
		t.Run(name, func(t *testing.T) {
			s := startShim(t)
			c := testContainer{args: []string{"/no/such/program"}, created: created}
			id := s.bundle(c)
			_, err := s.task.Create(s.ctx, s.createRequest(id, c))
			if !created {
				if err != nil {
					t.Fatal(err)
				}
				_, err = s.task.Start(s.ctx, &taskpb.StartRequest{Id: id})
			}
			if err == nil || !strings.Contains(err.Error(), "/no/such/program") || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("error: %v", err)
			}
			if created {
				_, err = s.task.State(s.ctx, &taskpb.StateRequest{Id: id})
				wantCode(t, "state after a failed create", err, codes.NotFound)
				return
			}
			if code := s.wait(id, ""); code != startFailed || s.exitFact(id).ExitCode != startFailed {
				t.Errorf("code %d", code)
			}
			s.delete(id)
		})
	}
}

func TestKilledRuntimeLeavesNothing(t *testing.T) {
	s := startShim(t)
	real := s.runc
	s.runc = filepath.Join(s.logs, "runc")
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *' run '*) mkdir -p %s/c1; exec sleep 1000;; esac\nexec %s \"$@\"\n", s.pidsCgroup(), real)
	if err := os.WriteFile(s.runc, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	id := s.create(testContainer{script: "exit 0"})
	failed := make(chan error, 1)
	go func() {
		_, err := s.task.Start(s.ctx, &taskpb.StartRequest{Id: id})
		failed <- err
	}()
	s.eventually("the runtime to have made its cgroup", func() bool { // what it has started would outlive it
		_, err := os.Stat(filepath.Join(s.pidsCgroup(), "c1"))
		return err == nil
	})
	s.eventually("the hanging runtime to be killed", func() bool {
		_, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, Signal: 9})
		return err == nil
	})
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("start: %v", err)
	}
	s.delete(id)
}

func TestLogOfManyBytesIsComplete(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "seq 1 200000; printf end"})
	s.wait(id, "")
	var want bytes.Buffer
	for i := range 200000 {
		fmt.Fprintln(&want, i+1)
	}
	want.WriteString("end")
	if out := s.output(id); out != want.String() {
		t.Errorf("%d bytes, want %d", len(out), want.Len())
	}
}

func TestReopenLog(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.002; done"})
	var files []string
	for i := range 5 {
		old := fmt.Sprintf("%s.%d", s.logPath(id), i)
		if err := os.Rename(s.logPath(id), old); err != nil {
			t.Fatal(err)
		}
		if _, err := s.shim.ReopenLog(s.ctx, &shimpb.ReopenLogRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
		files = append(files, old)
		time.Sleep(50 * time.Millisecond)
	}
	s.wait(id, "")
	var lines []logLine
	for _, file := range append(files, s.logPath(id)) {
		lines = append(lines, readLog(t, file)...)
	}
	if len(lines) != 300 || lines[299].content != "line 299" {
		t.Errorf("%d lines", len(lines))
	}
	_, err := s.shim.ReopenLog(s.ctx, &shimpb.ReopenLogRequest{Id: "nobody"})
	wantCode(t, "reopen log of an unknown container", err, codes.NotFound)
}

func TestContainerWithoutLog(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "seq 1 100000; exit 1", noLog: true})
	if code := s.wait(id, ""); code != 1 {
		t.Errorf("code %d", code)
	}
}

func TestBadRequests(t *testing.T) {
	s := startShim(t)
	c := testContainer{script: "sleep 1000"}
	id := s.bundle(c)
	for name, test := range map[string]struct {
		change func(*taskpb.CreateTaskRequest)
		want   codes.Code
	}{
		"no id":            {func(r *taskpb.CreateTaskRequest) { r.Id = "" }, codes.InvalidArgument},
		"id with a path":   {func(r *taskpb.CreateTaskRequest) { r.Id = "../x" }, codes.InvalidArgument},
		"relative bundle":  {func(r *taskpb.CreateTaskRequest) { r.Bundle = "bundle" }, codes.InvalidArgument},
		"missing bundle":   {func(r *taskpb.CreateTaskRequest) { r.Bundle = "/no/such/bundle" }, codes.InvalidArgument},
		"no options":       {func(r *taskpb.CreateTaskRequest) { r.Options = nil }, codes.InvalidArgument},
		"broken options":   {func(r *taskpb.CreateTaskRequest) { r.Options.Value = []byte{0xff} }, codes.InvalidArgument},
		"FIFOs":            {func(r *taskpb.CreateTaskRequest) { r.Stdout = "/fifo" }, codes.Unimplemented},
		"checkpoint":       {func(r *taskpb.CreateTaskRequest) { r.Checkpoint = "x" }, codes.InvalidArgument},
		"half checkpoint":  {func(r *taskpb.CreateTaskRequest) { r.ParentCheckpoint = "/x" }, codes.Unimplemented},
		"other options":    {func(r *taskpb.CreateTaskRequest) { r.Options.TypeUrl = "containerd.runc.v1.Options" }, codes.InvalidArgument},
		"log folder is no": {func(*taskpb.CreateTaskRequest) {}, codes.FailedPrecondition},
	} {
		req := s.createRequest(id, c)
		test.change(req)
		if test.want == codes.FailedPrecondition {
			logs := s.logs
			s.logs = "/no/such/folder"
			req = s.createRequest(id, c)
			s.logs = logs
		}
		_, err := s.task.Create(s.ctx, req)
		wantCode(t, name, err, test.want)
	}
	if _, err := s.task.Create(s.ctx, s.createRequest(id, c)); err != nil {
		t.Fatalf("the right request after the wrong ones: %v", err)
	}
	_, err := s.task.Create(s.ctx, s.createRequest(id, c))
	wantCode(t, "the same id again", err, codes.AlreadyExists)
	_, err = s.task.Wait(s.ctx, &taskpb.WaitRequest{Id: "nobody"})
	wantCode(t, "wait for nobody", err, codes.NotFound)
	_, err = s.task.Checkpoint(s.ctx, &taskpb.CheckpointTaskRequest{Id: id})
	wantCode(t, "checkpoint to nowhere", err, codes.InvalidArgument)
	_, err = s.task.Shutdown(s.ctx, &taskpb.ShutdownRequest{})
	wantCode(t, "shutdown with a container", err, codes.FailedPrecondition)
}

func TestShutdown(t *testing.T) {
	terminate := func(s *testShim) error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	for name, end := range map[string]func(s *testShim, id string, kill func()) error{
		"call": func(s *testShim, id string, kill func()) error {
			kill()
			s.wait(id, "")
			s.delete(id)
			// ttrpc's client may tell of the connection's end though the answer came before it: it selects between the two.
			if _, err := s.task.Shutdown(s.ctx, &taskpb.ShutdownRequest{}); !errors.Is(err, ttrpc.ErrClosed) {
				return err
			}
			return nil
		},
		// The machine goes down: nobody deletes containers.
		"SIGTERM": func(s *testShim, id string, kill func()) error {
			kill()
			s.wait(id, "")
			return terminate(s)
		},
		"SIGTERM before the container's end": func(s *testShim, id string, kill func()) error {
			for range 2 {
				if err := terminate(s); err != nil {
					return err
				}
			}
			s.eventually("the signal waits", func() bool {
				log, err := os.ReadFile(shimapi.LogPath(s.dir))
				return err == nil && bytes.Contains(log, []byte("a signal waits for containers"))
			})
			if n := len(s.info().Tasks); n != 1 {
				return fmt.Errorf("%d containers", n)
			}
			kill()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := startShim(t)
			id := s.create(testContainer{script: "sleep 1000"})
			pid := s.start(id)
			err := end(s, id, func() {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Error(err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			<-s.exited
			if code := s.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if name != "call" && s.exitFact(id).ExitCode != 137 {
				t.Errorf("on disk is %+v", s.exitFact(id))
			}
			if _, err := net.Dial("unix", shimapi.SocketPath(s.dir)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("connect to an ended shim: %v", err)
			}
		})
	}
}

func TestSIGUSR1WritesStacksToTheLog(t *testing.T) {
	s := startShim(t)
	if err := s.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	s.eventually("stacks in shim.log", func() bool {
		log, err := os.ReadFile(shimapi.LogPath(s.dir))
		return err == nil && bytes.Contains(log, []byte("(*service).run"))
	})
	s.info()
}

func TestDaemonGoesAndComesBack(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 0.3; echo meanwhile; exit 9"})
	waiting := make(chan error, 1)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	go func() {
		_, err := s.task.Wait(ctx, &taskpb.WaitRequest{Id: id})
		waiting <- err
	}()
	time.Sleep(50 * time.Millisecond)
	s.conn.Close()
	if err := <-waiting; err == nil {
		t.Error("wait survived its connection")
	}
	time.Sleep(500 * time.Millisecond)
	s.connect()
	info := s.taskInfo(id)
	if info.Status != shimpb.Status_STOPPED || info.ExitStatus != 9 || s.output(id) != "meanwhile\n" {
		t.Errorf("%v, output %q", info, s.output(id))
	}
}

func TestKilledShimLeavesFacts(t *testing.T) {
	s := startShim(t)
	done, alive := s.run(testContainer{script: "exit 6"}), s.run(testContainer{script: "sleep 1000"})
	s.wait(done, "")
	s.cmd.Process.Kill()
	<-s.exited
	if fact := s.exitFact(done); fact.ExitCode != 6 {
		t.Errorf("%+v", fact)
	}
	init, err := shimapi.ReadInitFact(shimapi.BundlePath(s.dir, alive))
	if err != nil || !proc.Is(init.PID, init.StartTime) {
		t.Fatalf("%+v, %v", init, err)
	}
	if err := syscall.Kill(init.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.eventually("the init to end", func() bool { return !proc.Is(init.PID, init.StartTime) })
}
