// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/fifo"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

// pipedExec is an exec that writes into its client's pipes.
type pipedExec struct {
	id             string
	lease          *net.UnixConn
	stdout, stderr *os.File
	err            error // of the call
}

// piped starts one.
func (s *testShim) piped(id string, terminal bool, script string) *pipedExec {
	s.Helper()
	s.counter++
	e := &pipedExec{id: fmt.Sprintf("e%d", s.counter)}
	lease, pipes, err := s.leasePipes(id, e.id)
	if err != nil {
		s.Fatal(err)
	}
	e.lease, e.stdout, e.stderr = lease, pipes[0], pipes[1]
	s.Cleanup(e.close)
	_, e.err = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: e.id, Stdout: true, Stderr: true, Lease: true,
		Process: mustJSON(s, s.process(terminal, "sh", "-c", script))})
	return e
}

// leasePipes connects a lease that brings pipes, and returns their other ends.
func (s *testShim) leasePipes(id, exec string) (lease *net.UnixConn, pipes [2]*os.File, err error) {
	s.Helper()
	if lease, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: shimapi.StdioSocketPath(s.dir), Net: "unix"}); err != nil {
		return nil, pipes, err
	}
	var theirs [2]int
	for i := range pipes {
		if pipes[i], theirs[i], err = fifo.Pipe(true); err != nil {
			return nil, pipes, err
		}
	}
	defer sock.CloseAll(theirs[:])
	return lease, pipes, errors.Join(shimapi.WritePipesHeader(lease, id, exec, theirs[0], theirs[1]), shimapi.ReadStreamAnswer(lease))
}

func (e *pipedExec) close() {
	e.lease.Close()
	e.stdout.Close()
	e.stderr.Close()
}

func (s *testShim) forgotten(id, exec string) {
	s.Helper()
	s.eventually("exec "+exec+" to be forgotten", func() bool {
		_, err := s.task.State(s.ctx, &taskpb.StateRequest{Id: id, ExecId: exec})
		return err != nil
	})
}

func TestAnExecWritesIntoItsClientsPipes(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	before := len(s.fds())
	e := s.piped(id, false, "echo out; echo err >&2; exit 7")
	if e.err != nil {
		t.Fatal(e.err)
	}
	if code, err := shimapi.ReadExecExit(e.lease); code != 7 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	for want, pipe := range map[string]*os.File{"out\n": e.stdout, "err\n": e.stderr} {
		pipe.SetReadDeadline(time.Now().Add(5 * time.Second))
		if got, err := io.ReadAll(pipe); string(got) != want || err != nil { // at its end, since nobody else has it
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	e.close()
	s.forgotten(id, e.id)
	if log, err := os.ReadFile(shimapi.LogPath(s.dir)); err != nil || strings.Contains(string(log), "client of an exec is gone") {
		t.Errorf("an exec that has ended has lost its client (%v):\n%s", err, log)
	}

	e = s.piped(id, false, "sleep 4321 & echo left; exit 0")
	if code, err := shimapi.ReadExecExit(e.lease); code != 0 || err != nil {
		t.Errorf("with a child that holds the pipes: exit %d, %v", code, err)
	}
	e.close()
	s.forgotten(id, e.id)

	e = s.piped(id, false, "sleep 4321; echo late") // its client leaves first
	e.close()
	s.forgotten(id, e.id)

	if e = s.piped(id, true, "true"); e.err == nil || !strings.Contains(e.err.Error(), "not into pipes") {
		t.Errorf("with a terminal: %v", e.err)
	}
	e.close()
	if e = s.piped("nobody", false, "true"); e.err == nil {
		t.Error("an exec in a container that is not there")
	}
	e.stdout.SetReadDeadline(time.Now().Add(streamWait / 2))
	if n, err := e.stdout.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the pipes of an exec that was refused: %d, %v", n, err)
	}
	e.close()
	s.eventually("the descriptors to be closed", func() bool { return len(s.fds()) <= before })
}

// TestPipesThatNobodyTakesAreClosed: a client that gives some and goes, or gives what the protocol does not have.
func TestPipesThatNobodyTakesAreClosed(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	before := len(s.fds())
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	header := func(text string) []byte { return append([]byte{0, 0, 0, byte(len(text))}, text...) }
	for name, c := range map[string]struct {
		header string
		fds    []int
		reason string
	}{
		"one of two":       {`{"id":"` + id + `","exec_id":"e","stream":"lease","pipes":true}`, []int{fd}, "1 descriptors came"},
		"one too many":     {`{"id":"` + id + `","exec_id":"e","stream":"lease","pipes":true}`, []int{fd, fd, fd}, "more descriptors"},
		"none":             {`{"id":"` + id + `","exec_id":"e","stream":"lease","pipes":true}`, nil, "0 descriptors came"},
		"not announced":    {`{"id":"` + id + `","exec_id":"e","stream":"lease"}`, []int{fd, fd}, "2 descriptors came"},
		"for an attach":    {`{"id":"` + id + `","stream":"stdout"}`, []int{fd}, "1 descriptors came"},
		"not with a lease": {`{"id":"` + id + `","exec_id":"e","stream":"stdout","pipes":true}`, []int{fd, fd}, "they come with a lease"},
	} {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: shimapi.StdioSocketPath(s.dir), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if c.fds == nil {
			_, err = conn.Write(header(c.header))
		} else {
			err = sock.WriteRights(conn, header(c.header), c.fds...)
		}
		if err == nil {
			err = shimapi.ReadStreamAnswer(conn)
		}
		var refused *shimapi.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Reason, c.reason) {
			t.Errorf("%s: %v, want %q", name, err, c.reason)
		}
		conn.Close()
	}
	s.eventually("the descriptors to be closed", func() bool { return len(s.fds()) <= before })
}

// TestAnExecWhoseClientLeavesWhileTheRuntimeHangsIsEnded: hangUpGrace is over before there is a process that could hear of it.
func TestAnExecWhoseClientLeavesWhileTheRuntimeHangsIsEnded(t *testing.T) {
	s := startShim(t)
	s.hangExecs()
	id := s.run(testContainer{script: "sleep 1000"})
	lease, err := s.stream(id, "hangs", shimapi.Lease)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: "hangs", Lease: true, Process: mustJSON(t, s.process(false, "true"))})
		failed <- err
	}()
	s.eventually("the exec", func() bool {
		_, err := s.task.State(s.ctx, &taskpb.StateRequest{Id: id, ExecId: "hangs"})
		return err == nil
	})
	lease.Close()
	select {
	case err := <-failed:
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("exec: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the runtime hangs on")
	}
	s.forgotten(id, "hangs")
	if children, err := proc.Children(s.cmd.Process.Pid); err != nil || len(children) != 1 { // the container's init
		t.Errorf("children of the shim: %v, %v", children, err)
	}
}

// TestWhatAnExecLeavesBehindGoesWithAClientThatHasNotHeardOfItsEnd: without its client the command has ended by SIGPIPE, not by itself.
func TestWhatAnExecLeavesBehindGoesWithAClientThatHasNotHeardOfItsEnd(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	e := s.piped(id, false, "sleep 4321 & while :; do echo said; done")
	if e.err != nil {
		t.Fatal(e.err)
	}
	e.stdout.Close()
	if code := s.wait(id, e.id); code != 141 {
		t.Errorf("code %d", code)
	}
	if left := s.sleepers(id); len(left) != 2 {
		t.Errorf("before its client leaves: %q", left)
	}
	e.close()
	s.forgotten(id, e.id)
	s.eventually("its child to be ended", func() bool { return len(s.sleepers(id)) == 1 })

	e = s.piped(id, false, "sleep 4321 & echo said")
	if code, err := shimapi.ReadExecExit(e.lease); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	e.close()
	s.forgotten(id, e.id)
	if left := s.sleepers(id); len(left) != 2 {
		t.Errorf("of a client that has heard of the end: %q", left)
	}
}
