// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

func TestExecStreams(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	e := s.exec(id, true, "cat; echo err >&2; exit 5")
	if _, err := e.stdin.Write([]byte("through and back\n")); err != nil {
		t.Fatal(err)
	}
	if err := e.stdin.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if out, err := s.receive(e.stdout, 5*time.Second), s.receive(e.stderr, 5*time.Second); out != "through and back\n" || err != "err\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	if code := s.wait(id, e.id); code != 5 {
		t.Errorf("code %d", code)
	}
	s.deleteExec(id, e)
	_, err := s.task.Wait(s.ctx, &taskpb.WaitRequest{Id: id, ExecId: e.id})
	wantCode(t, "wait after delete", err, codes.NotFound)
	if left, _ := filepath.Glob(filepath.Join(shimapi.BundlePath(s.dir, id), "exec-*")); left != nil {
		t.Errorf("left: %v", left)
	}
}

func TestExecHasItsSpecsEnvironmentAlone(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	e := s.exec(id, false, "env")
	if out := s.receive(e.stdout, 10*time.Second); !strings.Contains(out, "PATH=") || strings.Contains(out, "GOMAXPROCS") {
		t.Errorf("environment: %q", out)
	}
	s.wait(id, e.id)
	s.deleteExec(id, e)
}

func TestExecMovesManyBytesBothWays(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	const size = 32 << 20
	e := s.exec(id, true, "cat")
	go func() {
		chunk := []byte(strings.Repeat("0123456789abcdef", 4096))
		for range size / len(chunk) {
			if _, err := e.stdin.Write(chunk); err != nil {
				t.Errorf("write stdin: %v", err)
				break
			}
		}
		e.stdin.CloseWrite()
	}()
	out := s.receive(e.stdout, 60*time.Second)
	if len(out) != size || strings.Count(out, "0123456789abcdef") != size/16 {
		t.Errorf("%d bytes came back", len(out))
	}
	s.wait(id, e.id)
	s.deleteExec(id, e)
}

// TestLastOutputOutlivesTheDeletionOfItsExec deletes execs as soon as they have ended.
func TestLastOutputOutlivesTheDeletionOfItsExec(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	for i := range 10 {
		var all []*testExec
		for range 2 {
			all = append(all, s.exec(id, false, fmt.Sprintf("echo %d", i)))
		}
		for _, e := range all {
			s.wait(id, e.id)
			s.deleteExec(id, e)
			if got := s.receive(e.stdout, 10*time.Second); got != fmt.Sprintln(i) {
				t.Fatalf("exec %d said %q", i, got)
			}
		}
	}
}

func TestExecOutputWaitsForASlowClient(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	conn, err := s.stream(id, "slow", shimapi.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = s.shim.Exec(s.ctx, &shimpb.ExecRequest{
		Id: id, ExecId: "slow", Stdout: true, Process: mustJSON(t, s.process(false, "dd", "if=/dev/zero", "bs=1000", "count=300")),
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(700 * time.Millisecond) // whatever the process has written by now waits for us
	data, err := io.ReadAll(conn)
	if err != nil || len(data) != 300000 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	s.wait(id, "slow")
}

func TestFinishedExecOfAClientThatNeverReadsCanBeDeleted(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	conn, err := s.stream(id, "deaf", shimapi.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: "deaf", Stdout: true, Process: mustJSON(t, s.process(false, "yes"))})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	_, err = s.task.Delete(s.ctx, &taskpb.DeleteRequest{Id: id, ExecId: "deaf"})
	wantCode(t, "delete while running", err, codes.FailedPrecondition)
	if _, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, ExecId: "deaf", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if code := s.wait(id, "deaf"); code != 137 {
		t.Errorf("code %d", code)
	}
	if _, err := s.task.Delete(s.ctx, &taskpb.DeleteRequest{Id: id, ExecId: "deaf"}); err != nil {
		t.Fatal(err)
	}
}

func TestExecEndsThoughABackgroundChildHoldsThePipe(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	for name, script := range map[string]string{
		"silent":  "sleep 1000 & echo done",
		"flowing": "yes & sleep 0.1; echo done >&2",
	} {
		t.Run(name, func(t *testing.T) {
			e := s.exec(id, false, script)
			if code := s.wait(id, e.id); code != 0 {
				t.Errorf("code %d", code)
			}
			out, err := s.receive(e.stdout, 5*time.Second), s.receive(e.stderr, 5*time.Second)
			if name == "silent" && out != "done\n" || name == "flowing" && err != "done\n" {
				t.Errorf("stdout %.100q, stderr %.100q", out, err)
			}
			s.deleteExec(id, e)
		})
	}
}

func TestExecKillTakesTheWholeTree(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	for name, script := range map[string]string{
		"children":             "sleep 1001 & sleep 1002",
		"re-parented child":    "(sleep 1003 & ) ; sleep 1004",
		"ended leader":         "(sleep 1005 & ) ; exit 0",
		"own session":          "setsid sh -c 'sleep 1006; :' & sleep 1007",
		"forking sessions":     "while :; do setsid sleep 1009 & setsid sh -c 'sleep 1010; :' & done",
		"ignoring other kills": "trap '' TERM HUP INT; sh -c 'trap \"\" TERM; sleep 1008; :' & while :; do sleep 1; done",
	} {
		t.Run(name, func(t *testing.T) {
			e := s.exec(id, false, script)
			time.Sleep(100 * time.Millisecond)
			begin := time.Now()
			if _, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, ExecId: e.id, Signal: 9, All: true}); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			resp, err := s.task.Pids(s.ctx, &taskpb.PidsRequest{Id: id})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range resp.Processes { // the init and its sleep
				if stat, err := proc.ReadStat(int(p.Pid)); err == nil && !stat.Ended() && int(p.Pid) != int(s.taskInfo(id).Pid) && stat.PPID != int(s.taskInfo(id).Pid) {
					t.Errorf("alive: %+v", stat)
				}
			}
			if left := s.sleepers(id); len(left) != 1 {
				t.Errorf("left: %q", left)
			}
			if _, err := proc.ReadStat(e.pid); err == nil {
				t.Error("exec is not reaped")
			}
			s.receive(e.stdout, time.Second)
			s.deleteExec(id, e)
		})
	}
}

// sleepers are the command lines of the container's live sleep processes.
func (s *testShim) sleepers(id string) []string {
	s.Helper()
	resp, err := s.task.Pids(s.ctx, &taskpb.PidsRequest{Id: id})
	if err != nil {
		s.Fatal(err)
	}
	var all []string
	for _, p := range resp.Processes {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
		if err == nil && strings.Contains(string(line), "sleep") {
			all = append(all, string(line))
		}
	}
	return all
}

func TestKillEndsAnExecWhoseRuntimeHangs(t *testing.T) {
	s := startShim(t)
	s.hangExecs()
	id := s.run(testContainer{script: "sleep 1000"})
	failed := make(chan error, 1)
	go func() {
		_, err := s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: "hangs", Process: mustJSON(t, s.process(false, "true"))})
		failed <- err
	}()
	s.eventually("the hanging exec to be killed", func() bool {
		_, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, ExecId: "hangs", Signal: 9, All: true})
		return err == nil
	})
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("exec: %v", err)
	}
	if children, err := proc.Children(s.cmd.Process.Pid); err != nil || len(children) != 1 { // the container's init
		t.Errorf("children of the shim: %v, %v", children, err)
	}
}

func TestExecFailures(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	e, err := s.tryExec(id, false, false, "/no/such/program")
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing program: %v", err)
	}
	s.receive(e.stdout, time.Second) // the streams are closed
	_, err = s.task.State(s.ctx, &taskpb.StateRequest{Id: id, ExecId: e.id})
	wantCode(t, "state of an exec that failed", err, codes.NotFound)
	_, err = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: "x", Process: []byte("no JSON")})
	wantCode(t, "broken process", err, codes.InvalidArgument)
	_, err = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: "x", Process: []byte("{}"), Stdout: true})
	wantCode(t, "stream that is not connected", err, codes.FailedPrecondition)
	_, err = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: "../x", Process: []byte("{}")})
	wantCode(t, "exec id with a path", err, codes.InvalidArgument)
	_, err = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: "nobody", ExecId: "x", Process: []byte("{}")})
	wantCode(t, "exec in an unknown container", err, codes.NotFound)
	s.kill(id, syscall.SIGKILL)
	s.wait(id, "")
	_, err = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: "x", Process: []byte("{}")})
	wantCode(t, "exec in a stopped container", err, codes.FailedPrecondition)
}

func TestStreamRefusals(t *testing.T) {
	s := startShim(t)
	refused := func(what string, err error, text string) {
		t.Helper()
		var refusal *shimapi.RefusedError
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, text) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := s.stream("c", "", shimapi.Stdout)
	refused("attach to a container that is not there", err, "not known")
	_, err = s.stream("c", "e", "stdfoo")
	refused("unknown stream", err, "unknown stream")
	conn, err := s.stream("c", "e", shimapi.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = s.stream("c", "e", shimapi.Stdout)
	refused("stream connected twice", err, "connected already")
	for i := range maxStreams - 1 {
		conn, err := s.stream("c", fmt.Sprint(i), shimapi.Stdout)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	_, err = s.stream("c", "over", shimapi.Stdout)
	refused("one stream too many", err, "waiting already")
	conn.SetReadDeadline(time.Now().Add(streamWait + 5*time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("a stream that nobody asks for: %v", err)
	}
	again, err := s.stream("c", "later", shimapi.Stdout)
	if err != nil {
		t.Fatalf("after the others have expired: %v", err)
	}
	again.Close()
}

func TestExecWithTerminal(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	e, err := s.tryExec(id, true, true, "sh", "-c", "read line; stty size; echo got $line; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.task.ResizePty(s.ctx, &taskpb.ResizePtyRequest{Id: id, ExecId: e.id, Width: 77, Height: 33}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.stdin.Write([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	if out := s.receive(e.stdout, 5*time.Second); out != "typed\r\n33 77\r\ngot typed\r\n" {
		t.Errorf("output %q", out)
	}
	if code := s.wait(id, e.id); code != 3 {
		t.Errorf("code %d", code)
	}
	s.deleteExec(id, e)
}

func TestCloseIOEndsAnExecsInput(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	e := s.exec(id, true, "cat; echo end")
	if _, err := e.stdin.Write([]byte("before ")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.task.CloseIO(s.ctx, &taskpb.CloseIORequest{Id: id, ExecId: e.id, Stdin: true}); err != nil {
		t.Fatal(err)
	}
	if out := s.receive(e.stdout, 5*time.Second); out != "before end\n" {
		t.Errorf("output %q", out)
	}
	if code := s.wait(id, e.id); code != 0 { // its output ends a moment before it does
		t.Errorf("code %d", code)
	}
	s.deleteExec(id, e)
}

func TestExecsDieWithTheirContainer(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	e := s.exec(id, true, "sleep 1000")
	s.kill(id, syscall.SIGKILL)
	if code := s.wait(id, e.id); code != 137 {
		t.Errorf("code %d", code)
	}
	s.receive(e.stdout, time.Second)
	s.wait(id, "")
	s.delete(id)
}

func TestExecLeavesNothingOpen(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	before := len(s.fds())
	for range 3 {
		var all sync.WaitGroup
		for range 5 {
			e := s.exec(id, true, "echo hello; cat >/dev/null & exit 0")
			all.Go(func() {
				<-e.stdout
				<-e.stderr
				s.wait(id, e.id)
				s.deleteExec(id, e)
			})
		}
		all.Wait()
	}
	s.eventually("the descriptors to be closed", func() bool { return len(s.fds()) <= before })
}
