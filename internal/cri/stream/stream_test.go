// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
)

func TestSessionsEndAsTheirCommandsDo(t *testing.T) {
	for name := range transports {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			var out, errOut bytes.Buffer
			o := remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}
			code, err := stream(t.Context(), name, s.exec(o, "code"), o)
			if code != 7 || err != nil || out.String() != "out" || errOut.String() != "err" {
				t.Errorf("code %d, %v, %q, %q", code, err, out.String(), errOut.String())
			}
			if _, err = stream(t.Context(), name, s.exec(o, "fail"), o); err == nil || !strings.Contains(err.Error(), "it does not work") {
				t.Errorf("an exec that fails: %v", err)
			}
			if name == "websocket v4" { // it cannot end stdin
				return
			}
			out.Reset()
			in := strings.Repeat("0123456789abcdef", 1<<16)
			o = remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out}
			if code, err = stream(t.Context(), name, s.exec(o, "cat"), o); code != 0 || err != nil || out.String() != in {
				t.Errorf("cat: code %d, %v, %d bytes of %d", code, err, out.Len(), len(in))
			}
		})
	}
}

type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func TestSizesAreTold(t *testing.T) {
	for name := range transports {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			var out bytes.Buffer
			sizes := make(sizeQueue, 1)
			o := remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: sizes}
			go func() {
				for _, w := range []uint16{80, 0} {
					sizes <- remotecommand.TerminalSize{Width: w, Height: 24}
					time.Sleep(100 * time.Millisecond)
				}
				close(sizes)
			}()
			if _, err := stream(t.Context(), name, s.exec(o, "size"), o); err != nil || out.String() != "80x24\n0x24\n" {
				t.Errorf("%v, %q", err, out.String())
			}
		})
	}
}

// relay passes one connection on, until it is killed as a client's process is.
func (s *testServer) relay() (host string, kill func()) {
	s.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	killed := make(chan struct{})
	go func() {
		defer l.Close()
		near, err := l.Accept()
		if err != nil {
			return
		}
		defer near.Close()
		far, err := net.Dial("tcp", s.base.Host)
		if err != nil {
			return
		}
		defer far.Close()
		go io.Copy(far, near)
		go io.Copy(near, far)
		<-killed
	}()
	return l.Addr().String(), func() { close(killed) }
}

func TestAClientsLeavingEndsItsSession(t *testing.T) {
	for name := range transports {
		for _, cmd := range []string{"wait", "deaf"} {
			if name == "spdy" && cmd == "deaf" {
				continue // TCP holds the client's end back until the input before it is read, see lookAtClient
			}
			t.Run(name+" "+cmd, func(t *testing.T) {
				s := start(t, func(c *Config) { c.pongPace = 300 * time.Millisecond })
				shown, show := io.Pipe()
				o := remotecommand.StreamOptions{Stdout: show}
				if cmd == "deaf" { // more than all buffers hold, and nobody reads it
					o.Stdin = bytes.NewReader(make([]byte, 64<<20))
				}
				host, kill := s.relay()
				at, done := strings.Replace(s.exec(o, cmd), s.base.Host, host, 1), make(chan error, 1)
				go func() { _, err := stream(t.Context(), name, at, o); done <- err }()
				<-s.pods.entered
				if cmd == "deaf" {
					time.Sleep(700 * time.Millisecond) // until all buffers are full, and after the first pong
				} else if _, err := io.ReadFull(shown, make([]byte, len("ready"))); err != nil { // client-go has all of its streams
					t.Fatal(err)
				}
				kill()
				if err := <-done; err == nil && name != "spdy" { // client-go takes an end without a status for success there
					t.Error("the client believes that all went well")
				}
				select {
				case err := <-s.pods.ended:
					if !errors.Is(err, runtime.ErrClientGone) {
						t.Errorf("ended with %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Error("the session goes on without its client")
				}
			})
		}
	}
}

func TestShutdownTellsTheClients(t *testing.T) {
	for name := range transports {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			o := remotecommand.StreamOptions{Stdout: io.Discard}
			at, done := s.exec(o, "wait"), make(chan error, 1)
			go func() { _, err := stream(t.Context(), name, at, o); done <- err }()
			<-s.pods.entered
			begin := time.Now()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("the shutdown took %s", took)
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), "shutting down") {
				t.Errorf("the client heard %v", err)
			}
		})
	}
}

var upgradeHeaders = []string{"Connection", "Upgrade", "Upgrade", "SPDY/3.1"}

func TestATokenIsGoodForOneUseOfItsKind(t *testing.T) {
	s := start(t, nil)
	o := remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard}
	at := s.exec(o, "code")
	if code, text := s.get("POST", strings.Replace(at, "/exec/", "/attach/", 1), upgradeHeaders...); code != http.StatusNotFound {
		t.Errorf("token of another kind: %d %s", code, text)
	}
	if code, err := stream(t.Context(), "spdy", at, o); code != 7 || err != nil {
		t.Fatalf("first use: %d, %v", code, err)
	}
	if _, err := stream(t.Context(), "spdy", at, o); err == nil || !strings.Contains(err.Error(), "good for one use") {
		t.Errorf("second use: %v", err)
	}
	for _, wrong := range []string{"", "x", "../../etc/passwd", strings.Repeat("A", 26), strings.Repeat("A", 20000)} {
		if code, text := s.get("POST", s.URL()+"/exec/"+wrong, upgradeHeaders...); code != http.StatusNotFound {
			t.Errorf("token %.40q: %d %s", wrong, code, text)
		}
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	s := start(t, nil)
	o := remotecommand.StreamOptions{Stdout: io.Discard}
	for name, c := range map[string]struct {
		method string
		header []string
		code   int
		text   string
	}{
		"no upgrade":            {"GET", nil, http.StatusBadRequest, "upgrade"},
		"other method":          {"DELETE", upgradeHeaders, http.StatusMethodNotAllowed, "GET"},
		"other upgrade":         {"POST", []string{"Connection", "Upgrade", "Upgrade", "h2c", "X-Stream-Protocol-Version", "v4.channel.k8s.io"}, http.StatusBadRequest, "upgrade"},
		"SPDY without protocol": {"POST", upgradeHeaders, http.StatusBadRequest, "X-Stream-Protocol-Version"},
		"SPDY, unknown protocol": {"POST", append([]string{"X-Stream-Protocol-Version", "v9.channel.k8s.io"}, upgradeHeaders...), http.StatusForbidden,
			"negotiate"},
		"WebSocket without key": {"GET", []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13"}, http.StatusBadRequest, ""},
		"WebSocket, unknown protocol": {"GET", []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13",
			"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol", "v9.channel.k8s.io"}, http.StatusBadRequest, "v5.channel.k8s.io"},
	} {
		code, text := s.get(c.method, s.exec(o, "code"), c.header...)
		if code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d %s", name, code, text)
		}
	}
	for name, err := range map[string]error{
		"tty and stderr": func() error {
			_, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cat"}, Tty: true, Stdout: true, Stderr: true})
			return err
		}(),
		"no stream":    func() error { _, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c"}); return err }(),
		"no container": func() error { _, err := s.Attach(&runtimeapi.AttachRequest{Stdout: true}); return err }(),
		"no sandbox":   func() error { _, err := s.PortForward(&runtimeapi.PortForwardRequest{}); return err }(),
		"port 0": func() error {
			_, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 0}})
			return err
		}(),
	} {
		if !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "other", Cmd: []string{"cat"}, Stdout: true}); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
}

func TestSessionsAndURLsAreBounded(t *testing.T) {
	s := start(t, func(c *Config) { c.MaxSessions = 3 })
	o := remotecommand.StreamOptions{Stdout: io.Discard}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 3)
	for range 3 {
		at := s.exec(o, "wait")
		go func() { _, err := stream(ctx, "spdy", at, o); done <- err }()
		<-s.pods.entered
	}
	at := s.exec(o, "code")
	if code, text := s.get("POST", at, upgradeHeaders...); code != http.StatusServiceUnavailable || !strings.Contains(text, "max_sessions") {
		t.Errorf("one session too many: %d %s", code, text)
	}
	cancel()
	for range 3 {
		<-done
		<-s.pods.ended
	}
	for range 2 {
		s.exec(o, "code")
	}
	if _, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cat"}, Stdout: true}); !errors.Is(err, ErrBusy) {
		t.Errorf("one URL too many: %v", err)
	}
}

// dialSPDY makes a bare SPDY session.
func (s *testServer) dialSPDY(at, protocol string) httpstream.Connection {
	s.Helper()
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		s.Fatal(err)
	}
	r, err := http.NewRequest(http.MethodPost, at, nil)
	if err != nil {
		s.Fatal(err)
	}
	r.Header.Set("X-Stream-Protocol-Version", protocol)
	answer, err := (&http.Client{Transport: rt}).Do(r) //nolint:bodyclose // the connection is the body
	if err != nil {
		s.Fatal(err)
	}
	conn, err := rt.NewConnection(answer)
	if err != nil {
		s.Fatal(err)
	}
	return conn
}

func TestStreamsThatNobodyAskedForHoldUpNothing(t *testing.T) {
	s := start(t, func(c *Config) { c.CreationTimeout = 300 * time.Millisecond })
	conn := s.dialSPDY(s.exec(remotecommand.StreamOptions{Stdout: io.Discard}, "code"), "v4.channel.k8s.io")
	go func() { // client-go waits half a minute for an answer that the session's end has cut off
		for _, name := range []string{"stdin", "nonsense", "error", "error", "error"} {
			stream, err := conn.CreateStream(http.Header{"Streamtype": {name}})
			if err == nil {
				fmt.Fprint(stream, "nobody reads this")
			}
		}
	}()
	select {
	case <-conn.CloseChan():
	case <-time.After(10 * time.Second):
		t.Error("a session without its streams goes on")
	}
	conn.Close()
	// One that stays silent is ended, too.
	raw, err := net.Dial("tcp", s.base.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	at := s.exec(remotecommand.StreamOptions{Stdout: io.Discard}, "code")
	fmt.Fprintf(raw, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n",
		strings.TrimPrefix(at, s.URL()))
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, raw); err != nil {
		t.Errorf("a silent client is not hung up on: %v", err)
	}
}

func (s *testServer) forwardPair(conn link, request, port string) (data, errs io.ReadWriteCloser) {
	s.Helper()
	var err error
	header := func(kind string) http.Header {
		return http.Header{"Streamtype": {kind}, "Port": {port}, "Requestid": {request}}
	}
	if errs, err = conn.create(header("error")); err != nil {
		s.Fatal(err)
	}
	if data, err = conn.create(header("data")); err != nil {
		s.Fatal(err)
	}
	return data, errs
}

func TestOneForwardedConnectionEndsAlone(t *testing.T) {
	s := start(t, func(c *Config) { c.CreationTimeout = 3 * time.Second })
	at, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	conn := s.dialSPDY(at, "portforward.k8s.io")
	defer conn.Close()
	first, _ := s.forwardPair(linkOf(conn), "1", "7")
	broken, brokenErr := s.forwardPair(linkOf(conn), "2", "8")
	if got, _ := io.ReadAll(brokenErr); len(got) > 0 {
		t.Errorf("a connection that broke ends the whole session: %s", got)
	}
	if got, _ := io.ReadAll(broken); string(got) != "half" {
		t.Errorf("got %q", got)
	}
	_, refused := s.forwardPair(linkOf(conn), "3", "9")
	if got, _ := io.ReadAll(refused); !strings.Contains(string(got), "connection refused") {
		t.Errorf("got %q", got)
	}
	lonely, err := conn.CreateStream(http.Header{"Streamtype": {"error"}, "Port": {"7"}, "Requestid": {"4"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(lonely); !strings.Contains(string(got), "in time") {
		t.Errorf("got %q", got)
	}
	for _, port := range []string{"0", "65536", "x", "-1"} {
		if stream, err := conn.CreateStream(http.Header{"Streamtype": {"error"}, "Port": {port}, "Requestid": {"5"}}); err == nil {
			if got, _ := io.ReadAll(stream); len(got) > 0 {
				t.Errorf("port %s: %q", port, got)
			}
		}
	}
	fmt.Fprint(first, "still there")
	first.Close()
	if got, err := io.ReadAll(first); err != nil || string(got) != "still there" {
		t.Errorf("the first connection: %q, %v", got, err)
	}
}
