// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

// testExec is an exec with its client's streams.
type testExec struct {
	id             string
	pid            int
	stdin          *net.UnixConn
	stdout, stderr chan string
}

// stream connects to the stdio socket.
func (s *testShim) stream(id, exec string, name shimapi.Stream) (*net.UnixConn, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: shimapi.StdioSocketPath(s.dir), Net: "unix"})
	if err != nil {
		return nil, err
	}
	header := shimapi.StreamHeader{ID: id, ExecID: exec, Stream: name}
	if err := errors.Join(shimapi.WriteStreamHeader(conn, header), shimapi.ReadStreamAnswer(conn)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (s *testShim) collect(id, exec string, name shimapi.Stream) chan string {
	s.Helper()
	conn, err := s.stream(id, exec, name)
	if err != nil {
		s.Fatal(err)
	}
	all := make(chan string, 1)
	go func() {
		defer conn.Close()
		data, _ := io.ReadAll(conn)
		all <- string(data)
	}()
	return all
}

func (s *testShim) tryExec(id string, stdin, terminal bool, args ...string) (*testExec, error) {
	s.Helper()
	s.counter++
	e := &testExec{id: fmt.Sprintf("e%d", s.counter)}
	e.stdout = s.collect(id, e.id, shimapi.Stdout)
	if !terminal {
		e.stderr = s.collect(id, e.id, shimapi.Stderr)
	}
	if stdin {
		var err error
		if e.stdin, err = s.stream(id, e.id, shimapi.Stdin); err != nil {
			s.Fatal(err)
		}
	}
	resp, err := s.shim.Exec(s.ctx, &shimpb.ExecRequest{
		Id: id, ExecId: e.id, Process: mustJSON(s, s.process(terminal, args...)), Stdin: stdin, Stdout: true, Stderr: !terminal,
	})
	if err != nil {
		return e, err
	}
	e.pid = int(resp.Pid)
	return e, nil
}

func (s *testShim) exec(id string, stdin bool, script string) *testExec {
	s.Helper()
	e, err := s.tryExec(id, stdin, false, "sh", "-c", script)
	if err != nil {
		s.Fatalf("exec in %s: %v", id, err)
	}
	return e
}

func (s *testShim) deleteExec(id string, e *testExec) {
	s.Helper()
	if _, err := s.task.Delete(s.ctx, &taskpb.DeleteRequest{Id: id, ExecId: e.id}); err != nil {
		s.Fatalf("delete exec: %v", err)
	}
}

// receive waits for a stream's end.
func (s *testShim) receive(all chan string, within time.Duration) string {
	s.Helper()
	select {
	case text := <-all:
		return text
	case <-time.After(within):
		s.Fatalf("stream is not at its end after %v", within)
		return ""
	}
}

// hangExecs makes the OCI runtime hang, with a child, when it is to start an exec.
func (s *testShim) hangExecs() {
	s.Helper()
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *' exec '*) sleep 1000 & sleep 1000;; esac\nexec %s \"$@\"\n", s.runc)
	s.runc = filepath.Join(s.logs, "runc")
	if err := os.WriteFile(s.runc, []byte(script), 0o755); err != nil {
		s.Fatal(err)
	}
}
