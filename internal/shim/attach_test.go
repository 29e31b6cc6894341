// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

// attachedOutput is what a client got, and whether it was told that this is all.
type attachedOutput struct {
	text string
	err  error
}

func readAttached(conn *net.UnixConn, all chan<- attachedOutput) {
	defer conn.Close()
	var text bytes.Buffer
	for {
		n, err := shimapi.ReadAttachFrame(conn)
		if err == nil {
			_, err = io.CopyN(&text, conn, int64(n))
		}
		if err != nil {
			all <- attachedOutput{text.String(), err}
			return
		}
	}
}

func (s *testShim) attach(id string, stream shimapi.Stream) chan attachedOutput {
	s.Helper()
	conn, err := s.stream(id, "", stream)
	if err != nil {
		s.Fatal(err)
	}
	all := make(chan attachedOutput, 1)
	go readAttached(conn, all)
	return all
}

func (s *testShim) wantAttached(what string, all chan attachedOutput, text string) {
	s.Helper()
	select {
	case got := <-all:
		if got.text != text || !errors.Is(got.err, io.EOF) {
			s.Errorf("%s: %q, %v, want %q and an orderly end", what, got.text, got.err, text)
		}
	case <-time.After(20 * time.Second):
		s.Fatalf("%s does not end", what)
	}
}

func TestAttachSeesWhatTheContainerSaysFromThenOn(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "echo before; read line; echo got $line; echo bad >&2; exit 3", stdin: true, stdinOnce: true})
	s.awaitOutput(id, "before")
	out, errOut, second := s.attach(id, shimapi.Stdout), s.attach(id, shimapi.Stderr), s.attach(id, shimapi.Stdout)
	in, err := s.stream(id, "", shimapi.Stdin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("a line\n")); err != nil {
		t.Fatal(err)
	}
	s.wantAttached("stdout", out, "got a line\n")
	s.wantAttached("stderr", errOut, "bad\n")
	s.wantAttached("the second client's stdout", second, "got a line\n")
	if code := s.wait(id, ""); code != 3 {
		t.Errorf("code %d", code)
	}
	if n, err := in.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("stdin after the end: %v", err)
	}
	_, err = s.stream(id, "", shimapi.Stdout)
	var refused *shimapi.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("attach to a container that has ended: %v", err)
	}
}

func TestStdinOnceEndsWithItsFirstClient(t *testing.T) {
	s := startShim(t)
	once := s.run(testContainer{script: "cat; echo end", stdin: true, stdinOnce: true})
	in, err := s.stream(once, "", shimapi.Stdin)
	if err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("all of it, "))
	in.CloseWrite()
	s.wait(once, "")
	if out := s.output(once); out != "all of it, end\n" {
		t.Errorf("output %q", out)
	}

	often := s.run(testContainer{script: "while read line; do echo got $line; done", stdin: true})
	for i := range 3 {
		in, err := s.stream(often, "", shimapi.Stdin)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in, i)
		in.Close()
		s.awaitOutput(often, fmt.Sprintf("got %d", i))
	}
	none := s.run(testContainer{script: "sleep 1000"})
	if _, err := s.stream(none, "", shimapi.Stdin); err == nil || !strings.Contains(err.Error(), "no stdin") {
		t.Errorf("a container without stdin: %v", err)
	}
}

func TestAttachToATerminal(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "stty -echo; echo ready; read line; stty size; echo got $line", terminal: true, stdin: true})
	s.awaitOutput(id, "ready")
	out := s.attach(id, shimapi.Stdout)
	if _, err := s.stream(id, "", shimapi.Stderr); err == nil || !strings.Contains(err.Error(), "terminal") {
		t.Errorf("stderr of a terminal: %v", err)
	}
	if _, err := s.task.ResizePty(s.ctx, &taskpb.ResizePtyRequest{Id: id, Width: 77, Height: 33}); err != nil {
		t.Fatal(err)
	}
	in, err := s.stream(id, "", shimapi.Stdin)
	if err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("typed\n"))
	s.wantAttached("terminal", out, "33 77\r\ngot typed\r\n")
}

func TestAnAttachedClientGetsEverythingHoweverSlow(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "read go; head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2", stdin: true})
	conn, err := s.stream(id, "", shimapi.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.stream(id, "", shimapi.Stdin)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "go")
	time.Sleep(300 * time.Millisecond) // the container waits for the client
	all := make(chan attachedOutput, 1)
	go readAttached(conn, all)
	s.wantAttached("stdout", all, strings.Repeat("x", 3000000))
	s.wait(id, "")
}

func TestAClientThatTakesNothingStopsNeitherTheLogNorTheExit(t *testing.T) {
	s := startShim(t)
	const size = 600000 // more than the socket and the pipe hold
	id := s.run(testContainer{script: "read go; head -c 600000 /dev/zero | tr '\\0' x; echo; echo end", stdin: true})
	conn, err := s.stream(id, "", shimapi.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in, err := s.stream(id, "", shimapi.Stdin)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "go")
	begin := time.Now()
	if code := s.wait(id, ""); code != 0 {
		t.Errorf("code %d", code)
	}
	if took := time.Since(begin); took > 2*attachPatience {
		t.Errorf("the container waited %s for a client", took)
	}
	if out := s.output(id); len(out) != size+len("\nend\n") || !strings.HasSuffix(out, "x\nend\n") {
		t.Errorf("the log has %d bytes of %d", len(out), size+len("\nend\n"))
	}
	all := make(chan attachedOutput, 1)
	go readAttached(conn, all)
	got := <-all
	if !errors.Is(got.err, shimapi.ErrOutputLost) || len(got.text) == 0 || len(got.text) >= size {
		t.Errorf("the slow client got %d bytes and %v", len(got.text), got.err)
	}
}

func TestClientsThatLeaveAreForgotten(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000", stdin: true})
	before := len(s.fds())
	for range 3 {
		var all sync.WaitGroup
		for range maxAttached / 2 {
			all.Go(func() {
				for _, stream := range []shimapi.Stream{shimapi.Stdout, shimapi.Stderr, shimapi.Stdin} {
					conn, err := s.stream(id, "", stream)
					if err != nil {
						t.Error(err)
						return
					}
					if stream == shimapi.Stdin { // more than the pipe holds, and nobody reads
						conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
						conn.Write(make([]byte, 200<<10))
					}
					conn.Close()
				}
			})
		}
		all.Wait()
		s.eventually("the descriptors to be closed", func() bool { return len(s.fds()) <= before })
	}
}

// leased starts an exec that depends on its client.
func (s *testShim) leased(id, script string) (*testExec, *net.UnixConn) {
	s.Helper()
	s.counter++
	e := &testExec{id: fmt.Sprintf("e%d", s.counter)}
	e.stdout = s.collect(id, e.id, shimapi.Stdout)
	lease, err := s.stream(id, e.id, shimapi.Lease)
	if err != nil {
		s.Fatal(err)
	}
	resp, err := s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: e.id, Stdout: true, Lease: true,
		Process: mustJSON(s, s.process(false, "sh", "-c", script))})
	if err != nil {
		s.Fatal(err)
	}
	e.pid = int(resp.Pid)
	return e, lease
}

func TestAnExecEndsWithItsLease(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	before := len(s.fds())
	for name, script := range map[string]string{
		"a tree":       "sleep 4321 & sleep 4321",
		"deaf to HUP":  "trap '' HUP; sleep 4321 & while :; do sleep 4321; done",
		"saying a lot": "yes",
	} {
		e, lease := s.leased(id, script)
		lease.Close()
		s.eventually(name+" to be ended and forgotten", func() bool {
			_, err := s.task.State(s.ctx, &taskpb.StateRequest{Id: id, ExecId: e.id})
			return err != nil
		})
		s.receive(e.stdout, 5*time.Second)
		resp, err := s.task.Pids(s.ctx, &taskpb.PidsRequest{Id: id})
		if err != nil || len(resp.GetProcesses()) != 1 {
			t.Errorf("%s: processes %v are left, %v", name, resp.GetProcesses(), err)
		}
	}
	e, lease := s.leased(id, "echo out; exit 5")
	if out := s.receive(e.stdout, 5*time.Second); out != "out\n" {
		t.Errorf("output %q", out)
	}
	if code := s.wait(id, e.id); code != 5 {
		t.Errorf("code %d", code)
	}
	if code, err := shimapi.ReadExecExit(lease); code != 5 || err != nil {
		t.Errorf("the lease tells of exit %d, %v", code, err)
	}
	s.deleteExec(id, e)
	if n, err := lease.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the lease of an exec that was deleted: %v", err)
	}
	lease.Close()
	s.eventually("the descriptors to be closed", func() bool { return len(s.fds()) <= before })
}

func TestALostClientsInputHasNoEnd(t *testing.T) {
	s := startShim(t)
	id := s.run(testContainer{script: "sleep 1000"})
	const script = "cat >/tmp/got; echo whole >/tmp/got"
	for name, c := range map[string]struct {
		lost bool
		want string
	}{"lost": {true, "part"}, "ended": {false, "whole\n"}} {
		s.counter++
		exec := fmt.Sprintf("e%d", s.counter)
		var conns []*net.UnixConn
		for _, stream := range []shimapi.Stream{shimapi.Lease, shimapi.Stdout, shimapi.Stdin} {
			conn, err := s.stream(id, exec, stream)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		_, err := s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: exec, Stdin: true, Stdout: true, Lease: true,
			Process: mustJSON(s, s.process(false, "sh", "-c", script))})
		if err != nil {
			t.Fatal(err)
		}
		got := func() string { // where the container's /tmp is
			e := s.exec(id, false, "cat /tmp/got")
			out := s.receive(e.stdout, 5*time.Second)
			s.wait(id, e.id)
			s.deleteExec(id, e)
			return out
		}
		conns[2].Write([]byte("part"))
		s.eventually("the input to arrive", func() bool { return got() == "part" })
		if c.lost {
			for _, conn := range []*net.UnixConn{conns[2], conns[1], conns[0]} {
				conn.Close()
			}
			s.eventually("the exec to be ended", func() bool {
				_, err := s.task.State(s.ctx, &taskpb.StateRequest{Id: id, ExecId: exec})
				return err != nil
			})
		} else {
			conns[2].CloseWrite()
			s.wait(id, exec)
		}
		if out := got(); out != c.want {
			t.Errorf("%s: the file has %q, want %q", name, out, c.want)
		}
		for _, conn := range conns {
			conn.Close()
		}
	}
}
