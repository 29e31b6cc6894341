// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/transcript"
)

// server answers with what the test has put in.
type server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	run    func(context.Context, *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error)
	status func(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error)
	pull   func(context.Context, *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error)
	events func(*runtimeapi.GetEventsRequest, grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error
}

func (s *server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return s.run(ctx, r)
}

func (s *server) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return s.status(ctx, r)
}

func (s *server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return s.pull(ctx, r)
}

func (s *server) GetContainerEvents(r *runtimeapi.GetEventsRequest, ss grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	return s.events(r, ss)
}

// observed counts calls.
type observed struct {
	mu    sync.Mutex
	calls map[string]int
}

func (o *observed) Observe(_ context.Context, method string, code codes.Code, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if took >= 0 {
		o.calls[method+" "+code.String()]++
	}
}

// harness is a real gRPC server with the interceptors, and a client.
type harness struct {
	*server
	runtime  runtimeapi.RuntimeServiceClient
	image    runtimeapi.ImageServiceClient
	log      *Log
	out      *transcript.Text
	observed *observed
	calls    *Calls
}

var errGone = errors.New("no such thing")

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{server: &server{}, out: &transcript.Text{}, observed: &observed{calls: map[string]int{}}, calls: NewCalls()}
	var err error
	if h.log, err = NewLog(h.out, "json", "debug"); err != nil {
		t.Fatal(err)
	}
	unary, stream := Interceptors(InterceptorConfig{
		Log: h.log.Logger(), Observer: h.observed, Calls: h.calls,
		Status: func(err error) error {
			if errors.Is(err, errGone) {
				return status.Error(codes.NotFound, err.Error())
			}
			return status.Error(codes.Internal, err.Error())
		},
		Describe: func(o *Object) {
			if o.Container == "c1" {
				o.Sandbox, o.Pod, o.Name = "s1", "ns/p1", "web"
			}
		},
	})
	s := grpc.NewServer(grpc.UnaryInterceptor(unary), grpc.StreamInterceptor(stream))
	runtimeapi.RegisterRuntimeServiceServer(s, h.server)
	runtimeapi.RegisterImageServiceServer(s, h.server)
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if left := h.calls.List(); len(left) > 0 {
			t.Errorf("calls still in flight: %+v", left)
		}
	})
	h.runtime, h.image = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return h
}

// lines are the log's lines with that message.
func (h *harness) lines(t *testing.T, msg string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for _, text := range strings.Split(strings.TrimSpace(h.out.String()), "\n") {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if line["msg"] == msg {
			found = append(found, line)
		}
	}
	return found
}

func expect(t *testing.T, line map[string]any, want map[string]any) {
	t.Helper()
	for k, v := range want {
		if line[k] != v {
			t.Errorf("%s is %v, want %v, in %v", k, line[k], v, line)
		}
	}
}

func request() *runtimeapi.RunPodSandboxRequest {
	return &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "ns"},
		Annotations: map[string]string{"secret": "annotation-text"},
	}}
}

func TestCallIsLoggedWithItsObjectButNotItsBody(t *testing.T) {
	h := newHarness(t)
	h.run = func(ctx context.Context, _ *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
		h.log.Logger().InfoContext(ctx, "inside")
		if got := h.calls.List(); len(got) != 1 || got[0].Method != "RunPodSandbox" || got[0].Object.Pod != "ns/p" || got[0].Since.IsZero() {
			t.Errorf("in flight: %+v", got)
		}
		return &runtimeapi.RunPodSandboxResponse{PodSandboxId: "s1"}, nil
	}
	if _, err := h.runtime.RunPodSandbox(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	expect(t, h.lines(t, "inside")[0], map[string]any{"pod": "ns/p"})
	line := h.lines(t, "call")[0]
	expect(t, line, map[string]any{"level": "INFO", "method": "RunPodSandbox", "pod": "ns/p", "sandbox": "s1", "code": "OK", "error": nil})
	if strings.Contains(h.out.String(), "annotation-text") {
		t.Error("the log has the request's body")
	}
	if h.observed.calls["RunPodSandbox OK"] != 1 {
		t.Errorf("observed: %v", h.observed.calls)
	}
}

func TestReadCallsAreQuietAndFailuresHaveTheirText(t *testing.T) {
	h := newHarness(t)
	var answer error
	h.status = func(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
		return &runtimeapi.ContainerStatusResponse{}, answer
	}
	for _, tc := range []struct {
		answer      error
		level, code string
		text        any
	}{
		{nil, "DEBUG", "OK", nil},
		{fmt.Errorf("container c1: %w", errGone), "DEBUG", "NotFound", "container c1: no such thing"},
		{errors.New("disk on fire"), "ERROR", "Internal", "disk on fire"},
		{errors.New(strings.Repeat("x", 2*maxErrorText)), "ERROR", "Internal", strings.Repeat("x", maxErrorText) + "…"},
	} {
		answer = tc.answer
		_, err := h.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "c1"})
		if status.Code(err).String() != tc.code {
			t.Errorf("answer: %v", err)
		}
		lines := h.lines(t, "call")
		expect(t, lines[len(lines)-1], map[string]any{"level": tc.level, "code": tc.code, "error": tc.text,
			"container": "c1", "sandbox": "s1", "pod": "ns/p1", "name": "web"})
	}
}

// What a pod or a caller does wrong must not look like the daemon's trouble: people are woken for errors.
func TestTheLevelTellsWhoseDoingAFailureIs(t *testing.T) {
	for _, c := range []struct {
		method string
		code   codes.Code
		want   slog.Level
	}{
		{"StopContainer", codes.OK, slog.LevelInfo},
		{"StopContainer", codes.DeadlineExceeded, slog.LevelError},
		{"StopContainer", codes.Canceled, slog.LevelWarn},
		{"ExecSync", codes.DeadlineExceeded, slog.LevelWarn},
		{"ExecSync", codes.Internal, slog.LevelError},
		{"GetContainerEvents", codes.Canceled, slog.LevelDebug},
		{"ContainerStatus", codes.NotFound, slog.LevelDebug},
		{"StartContainer", codes.NotFound, slog.LevelWarn},
		{"PullImage", codes.Unavailable, slog.LevelError},
	} {
		if got := levelOf(c.method, c.code); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.method, c.code, got, c.want)
		}
	}
}

func TestPanicEndsTheCallNotTheProcess(t *testing.T) {
	h := newHarness(t)
	h.run = func(context.Context, *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
		panic("index: boom")
	}
	h.events = func(*runtimeapi.GetEventsRequest, grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
		panic("in a stream")
	}
	for range 2 {
		_, err := h.runtime.RunPodSandbox(t.Context(), request())
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "index") {
			t.Errorf("answer: %v", err)
		}
	}
	ss, err := h.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ss.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("stream: %v", err)
	}
	lines := h.lines(t, "call")
	if len(lines) != 3 {
		t.Fatalf("%d lines", len(lines))
	}
	expect(t, lines[0], map[string]any{"level": "ERROR", "code": "Internal", "pod": "ns/p", "error": "panic: index: boom"})
	expect(t, lines[2], map[string]any{"method": "GetContainerEvents", "error": "panic: in a stream"})
	for _, l := range lines {
		if stack, _ := l["stack"].(string); !strings.Contains(stack, "rpc_test.go") {
			t.Errorf("stack: %q", stack)
		}
	}
}

func TestStreamIsInFlightUntilItEnds(t *testing.T) {
	h := newHarness(t)
	h.events = func(_ *runtimeapi.GetEventsRequest, ss grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
		if got := h.calls.List(); len(got) != 1 || got[0].Method != "GetContainerEvents" {
			t.Errorf("in flight: %+v", got)
		}
		return ss.Send(&runtimeapi.ContainerEventResponse{ContainerId: "c9"})
	}
	ss, err := h.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := ss.Recv(); err != nil || m.ContainerId != "c9" {
		t.Errorf("got %v, %v", m, err)
	}
	if _, err := ss.Recv(); err == nil {
		t.Error("the stream does not end")
	}
	expect(t, h.lines(t, "call")[0], map[string]any{"level": "DEBUG", "method": "GetContainerEvents", "code": "OK"})
}

func TestCredentialsReachNeitherLogNorAnswer(t *testing.T) {
	const password, token = "pass/word+1", "identity-token-1"
	basic := base64.StdEncoding.EncodeToString([]byte("user:auth-password"))
	for name, auth := range map[string]*runtimeapi.AuthConfig{
		"password": {Username: "user", Password: password}, "token": {IdentityToken: token}, "registry token": {RegistryToken: token},
		"basic": {Auth: basic},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			var answer error
			h.pull = func(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
				h.log.Logger().InfoContext(ctx, "pulling")
				if answer == nil {
					panic(r.Auth)
				}
				return nil, answer
			}
			for _, answer = range []error{nil, errors.New("GET https://r/token?password=pass%2Fword%2B1: 401"),
				fmt.Errorf("auth %s %s %s auth-password", password, token, basic),
				fmt.Errorf("header %s", base64.StdEncoding.EncodeToString([]byte("user:"+password)))} {
				_, err := h.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{
					Image: &runtimeapi.ImageSpec{Image: "r/app:1"}, Auth: auth})
				if err == nil {
					t.Fatal("no error")
				}
				own := secretsOf(&runtimeapi.PullImageRequest{Auth: auth})
				if all := err.Error() + h.out.String(); own.Replace(all) != all {
					t.Errorf("a secret is in the answer or the log:\n%s", all)
				}
			}
			expect(t, h.lines(t, "pulling")[0], map[string]any{"image": "r/app:1"})
			expect(t, h.lines(t, "call")[1], map[string]any{"image": "r/app:1", "level": "ERROR", "code": "Internal"})
		})
	}
}

func TestPasswordIsFoundInEachForm(t *testing.T) {
	r := secretsOf(&runtimeapi.PullImageRequest{Auth: &runtimeapi.AuthConfig{Username: "user", Password: "pass/word+1"}})
	for _, text := range []string{"pass/word+1", "pass%2Fword%2B1", base64.StdEncoding.EncodeToString([]byte("user:pass/word+1"))} {
		if got := r.Replace("x " + text + " y"); got != "x [redacted] y" {
			t.Errorf("got %q", got)
		}
	}
}

func TestObjectOfEachKindOfRequest(t *testing.T) {
	pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "ns"}}
	for _, tc := range []struct {
		message any
		want    Object
	}{
		{&runtimeapi.StopPodSandboxRequest{PodSandboxId: "s"}, Object{Sandbox: "s"}},
		{&runtimeapi.CreateContainerRequest{PodSandboxId: "s", SandboxConfig: pod,
			Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "i"}}},
			Object{Sandbox: "s", Pod: "ns/p", Name: "c"}},
		{&runtimeapi.ExecSyncRequest{ContainerId: "c", Cmd: []string{"secret"}}, Object{Container: "c"}},
		{&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "i"}}, Object{Image: "i"}},
		{&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "i"}, SandboxConfig: pod}, Object{Image: "i", Pod: "ns/p"}},
		{&runtimeapi.RunPodSandboxRequest{}, Object{}},
		{nil, Object{}},
	} {
		if got := objectOf(tc.message); got != tc.want {
			t.Errorf("%T: got %+v, want %+v", tc.message, got, tc.want)
		}
	}
}

func TestLongNamesAreCut(t *testing.T) {
	attrs := Object{Image: strings.Repeat("i", 5000)}.attrs()
	if n := len(attrs[0].Value.String()); n > maxAttr+len("…") {
		t.Errorf("%d bytes", n)
	}
}

func TestEveryReadMethodIsQuiet(t *testing.T) {
	known := map[string]bool{}
	for _, d := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		for _, m := range d.Methods {
			known[m.MethodName] = true
		}
		for _, m := range d.Streams {
			known[m.StreamName] = true
		}
	}
	for name := range known {
		read := strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Stream") || strings.HasSuffix(name, "Status") || strings.HasSuffix(name, "Stats")
		if read && !quiet[name] {
			t.Errorf("%s only reads and is logged at info", name)
		}
	}
	for name := range quiet {
		if !known[name] {
			t.Errorf("the API has no method %s", name)
		}
	}
}
