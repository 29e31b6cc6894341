// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
)

// fakePods is one container "c" in a pod "p". Its commands are the cases of Exec.
type fakePods struct {
	entered, ended chan error
}

func (fakePods) CheckExec(id string, cmd []string) error {
	if id != "c" {
		return fmt.Errorf("container %s: %w", id, pod.ErrNotFound)
	}
	return nil
}

func (f fakePods) Exec(ctx context.Context, _ string, cmd []string, s runtime.Session) (code int, err error) {
	switch cmd[0] {
	case "cat":
		_, err = io.Copy(s.Stdout, s.Stdin)
	case "fail":
		return 0, errors.New("it does not work")
	case "code":
		fmt.Fprint(s.Stdout, "out")
		fmt.Fprint(s.Stderr, "err")
		return 7, nil
	case "size":
		for size := range s.Resize {
			fmt.Fprintf(s.Stdout, "%dx%d\n", size.Width, size.Height)
			if size.Width == 0 {
				return 0, nil
			}
		}
	case "wait":
		if s.Stdout != nil {
			fmt.Fprint(s.Stdout, "ready")
		}
		f.entered <- nil
		<-ctx.Done()
		err = context.Cause(ctx)
		f.ended <- err
	case "deaf": // reads no stdin
		f.entered <- nil
		<-ctx.Done()
		f.ended <- context.Cause(ctx)
		err = context.Cause(ctx)
	}
	return 0, err
}

func (f fakePods) CheckAttach(id string, stdin bool) error { return f.CheckExec(id, nil) }
func (f fakePods) Attach(ctx context.Context, id string, s runtime.Session) error {
	_, err := f.Exec(ctx, id, []string{"cat"}, s)
	return err
}

func (fakePods) CheckPortForward(id string) error {
	if id != "p" {
		return fmt.Errorf("sandbox %s: %w", id, pod.ErrState)
	}
	return nil
}

// PortForward echoes on port 7, breaks on port 8, and refuses others.
func (fakePods) PortForward(ctx context.Context, _ string, port uint16, client io.ReadWriteCloser) error {
	switch port {
	case 7:
		echoed := make(chan error, 1)
		go func() {
			_, err := io.Copy(client, client)
			echoed <- errors.Join(err, client.Close())
		}()
		select {
		case err := <-echoed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	case 8:
		fmt.Fprint(client, "half")
		return fmt.Errorf("it broke: %w", pod.ErrReset)
	}
	return fmt.Errorf("connection refused: %w", pod.ErrUnavailable)
}

type testServer struct {
	*testing.T
	*Server
	pods fakePods
}

// ours matches the stack of a goroutine that serves.
var ours = regexp.MustCompile(`internal/cri/stream/(conn|forward|session|spdy|stream|tunnel|websocket)\.go`)

// start serves until the test's end, after which no goroutine of a session may be left.
func start(t *testing.T, change func(*Config)) *testServer {
	t.Helper()
	pods := fakePods{entered: make(chan error, 100), ended: make(chan error, 100)}
	c := Config{Pods: pods, Address: "127.0.0.1", IdleTimeout: time.Minute, CreationTimeout: 2 * time.Second, MaxSessions: 10, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		stacks := make([]byte, 4<<20)
		for range 800 { // beyond lingerTime
			if stacks = stacks[:goruntime.Stack(stacks[:cap(stacks)], true)]; !ours.Match(stacks) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("goroutines are left:\n%s", stacks)
	})
	return &testServer{t, s, pods}
}

func (s *testServer) exec(o remotecommand.StreamOptions, cmd ...string) string {
	s.Helper()
	at, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: cmd, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil})
	if err != nil {
		s.Fatal(err)
	}
	return at
}

var transports = map[string]func(at string) (remotecommand.Executor, error){
	"spdy": func(at string) (remotecommand.Executor, error) {
		u, err := url.Parse(at)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "POST", u)
	},
	"websocket v5": func(at string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "GET", at)
	},
	"websocket v4": func(at string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", at, "v4.channel.k8s.io")
	},
}

// stream runs a session with one of client-go's executors.
func stream(ctx context.Context, name, at string, o remotecommand.StreamOptions) (int, error) {
	e, err := transports[name](at)
	if err != nil {
		return 0, err
	}
	err = e.StreamWithContext(ctx, o)
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitStatus(), nil
	}
	return 0, err
}

// get sends a request and returns the answer's code and text.
func (s *testServer) get(method, at string, header ...string) (int, string) {
	s.Helper()
	r, err := http.NewRequest(method, at, nil)
	if err != nil {
		s.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		s.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
	if err != nil && !errors.Is(err, net.ErrClosed) {
		s.Fatal(err)
	}
	return answer.StatusCode, strings.TrimSpace(string(text))
}
