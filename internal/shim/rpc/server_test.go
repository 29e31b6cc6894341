// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi/task"
)

const service = "containerd.task.v3.Task/"

// fake is a server with a few methods.
type fake struct {
	*Server
	path    string
	entered chan struct{}
}

func startServer(t *testing.T) *fake {
	t.Helper()
	f := &fake{path: filepath.Join(t.TempDir(), "s"), entered: make(chan struct{}, 10)}
	var log bytes.Buffer
	f.Server = NewServer(Config{
		Methods: map[string]Method{
			service + "Connect": Handle(func(_ context.Context, req *wire.ProcessRequest) (*wire.ConnectResponse, error) {
				return &wire.ConnectResponse{ShimPID: 7, Version: req.ID}, nil
			}),
			service + "Start": Handle(func(_ context.Context, req *wire.ProcessRequest) (*wire.PIDResponse, error) {
				return nil, fmt.Errorf("stage: %w", Errorf(AlreadyExists, "container %s exists", req.ID))
			}),
			service + "Pause": Handle(func(context.Context, *wire.ProcessRequest) (*wire.Empty, error) { panic("oops") }),
			service + "Wait": Handle(func(ctx context.Context, _ *wire.ProcessRequest) (*wire.WaitResponse, error) {
				f.entered <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}),
		},
		Admit:  func(*net.UnixConn) error { return nil },
		Log:    slog.New(slog.NewTextHandler(&lockedWriter{w: &log}, nil)),
		Called: func(int) {},
	})
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: f.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { f.Serve(listener); close(served) }()
	t.Cleanup(func() {
		listener.Close()
		f.Shutdown(time.Second)
		<-served
	})
	return f
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (f *fake) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

func (f *fake) client(t *testing.T) task.TaskService {
	t.Helper()
	client := ttrpc.NewClient(f.dial(t))
	t.Cleanup(func() { client.Close() })
	return task.NewTaskClient(client)
}

func TestCallsOfARealClient(t *testing.T) {
	f := startServer(t)
	client := f.client(t)
	ctx := context.Background()
	for i := range 100 {
		resp, err := client.Connect(ctx, &task.ConnectRequest{Id: fmt.Sprint(i)})
		if err != nil || resp.ShimPid != 7 || resp.Version != fmt.Sprint(i) {
			t.Fatalf("%v, %v", resp, err)
		}
	}
	_, err := client.Start(ctx, &task.StartRequest{Id: "c"})
	if status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), "stage: container c exists") {
		t.Errorf("start: %v", err)
	}
	_, err = client.Pause(ctx, &task.PauseRequest{})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "oops") {
		t.Errorf("panic: %v", err)
	}
	_, err = client.Stats(ctx, &task.StatsRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: %v", err)
	}
}

func TestWaitingCallsDoNotHoldUpOthers(t *testing.T) {
	f := startServer(t)
	client := f.client(t)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	waited := make(chan error, 1)
	go func() {
		_, err := client.Wait(ctx, &task.WaitRequest{})
		waited <- err
	}()
	<-f.entered
	if _, err := client.Connect(context.Background(), &task.ConnectRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; status.Code(err) != codes.DeadlineExceeded && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: %v", err)
	}
}

func TestCallsEndWithTheirConnection(t *testing.T) {
	f := startServer(t)
	conn := f.dial(t)
	writeFrame(t, conn, 1, requestFrame, wire.Marshal(&wire.Request{Service: "containerd.task.v3.Task", Method: "Wait"}))
	<-f.entered
	conn.Close()
	ended := make(chan struct{})
	go func() { f.Server.calls.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the call of a client that is gone goes on")
	}
}

func TestShutdownAnswersTheCallsInFlight(t *testing.T) {
	f := startServer(t)
	conn := ttrpc.NewClient(f.dial(t))
	waited := make(chan error, 1)
	go func() {
		_, err := task.NewTaskClient(conn).Wait(context.Background(), &task.WaitRequest{})
		conn.Close()
		waited <- err
	}()
	<-f.entered
	begin := time.Now()
	f.Shutdown(time.Minute)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("took %v though the client has hung up", took)
	}
	if err := <-waited; status.Code(err) != codes.Canceled {
		t.Errorf("wait: %v", err)
	}
}

func TestShutdownEndsConnectionsThatNobodyHangsUp(t *testing.T) {
	f := startServer(t)
	conn := f.dial(t)
	wait := wire.Marshal(&wire.Request{Service: "containerd.task.v3.Task", Method: "Wait"})
	writeFrame(t, conn, 1, requestFrame, wait)
	<-f.entered
	f.Shutdown(10 * time.Millisecond)
	if _, err := io.ReadAll(conn); err != nil { // an answer, or none within the limit, and then the end
		t.Error(err)
	}
}

func TestACallAfterShutdownFindsTheConnectionClosed(t *testing.T) {
	f := startServer(t)
	conn := f.dial(t)
	call := wire.Marshal(&wire.Request{Service: "containerd.task.v3.Task", Method: "Wait"})
	writeFrame(t, conn, 1, requestFrame, call)
	<-f.entered
	ended := make(chan struct{})
	go func() { f.Shutdown(time.Minute); close(ended) }()
	if number, resp := readAnswer(t, conn); number != 1 || Code(resp.Status.Code) != Canceled {
		t.Errorf("%d, %+v", number, resp)
	}
	writeFrame(t, conn, 3, requestFrame, call)
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
	<-ended
}

func writeFrame(t *testing.T, conn net.Conn, stream uint32, kind byte, message []byte) {
	t.Helper()
	frame := make([]byte, headerSize, headerSize+len(message))
	binary.BigEndian.PutUint32(frame, uint32(len(message)))
	binary.BigEndian.PutUint32(frame[4:], stream)
	frame[8] = kind
	if _, err := conn.Write(append(frame, message...)); err != nil {
		t.Fatal(err)
	}
}

func readAnswer(t *testing.T, conn net.Conn) (uint32, wire.Response) {
	t.Helper()
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(header))
	if _, err := io.ReadFull(conn, body); err != nil {
		t.Fatal(err)
	}
	var resp wire.Response
	if err := wire.Unmarshal(body, &resp); err != nil || header[8] != responseFrame {
		t.Fatalf("frame %v, %v", header, err)
	}
	return binary.BigEndian.Uint32(header[4:]), resp
}

func TestBrokenFramesAreRefusedAndTheConnectionGoesOn(t *testing.T) {
	f := startServer(t)
	conn := f.dial(t)
	good := wire.Marshal(&wire.Request{Service: "containerd.task.v3.Task", Method: "Connect"})
	stream := uint32(1)
	for name, test := range map[string]struct {
		stream  func() uint32
		kind    byte
		message []byte
		want    Code
	}{
		"even number":      {func() uint32 { return stream + 1 }, requestFrame, good, InvalidArgument},
		"number used":      {func() uint32 { return 1 }, requestFrame, good, InvalidArgument},
		"data frame":       {func() uint32 { return stream }, 3, nil, InvalidArgument},
		"unknown frame":    {func() uint32 { return stream }, 9, nil, InvalidArgument},
		"broken envelope":  {func() uint32 { stream += 2; return stream }, requestFrame, []byte{0xff}, InvalidArgument},
		"empty envelope":   {func() uint32 { stream += 2; return stream }, requestFrame, nil, Unimplemented},
		"broken message":   {func() uint32 { stream += 2; return stream }, requestFrame, wire.Marshal(&wire.Request{Service: "containerd.task.v3.Task", Method: "Connect", Payload: []byte{0xff}}), InvalidArgument},
		"message too long": {func() uint32 { stream += 2; return stream }, requestFrame, make([]byte, maxMessage+1), ResourceExhausted},
	} {
		writeFrame(t, conn, stream, requestFrame, good) // a good call before each bad one
		if _, resp := readAnswer(t, conn); resp.Status.Code != 0 {
			t.Fatalf("before %s: %+v", name, resp)
		}
		number := test.stream()
		writeFrame(t, conn, number, test.kind, test.message)
		answered, resp := readAnswer(t, conn)
		if answered != number || Code(resp.Status.Code) != test.want || resp.Status.Message == "" {
			t.Errorf("%s: stream %d of %d, %+v", name, answered, number, resp)
		}
		stream += 2
	}
}

func TestConnectionsAndCallsAreBounded(t *testing.T) {
	f := startServer(t)
	conn := f.dial(t)
	wait := wire.Marshal(&wire.Request{Service: "containerd.task.v3.Task", Method: "Wait"})
	go func() {
		for range f.entered {
		}
	}()
	defer close(f.entered)
	for i := range maxCalls + 1 {
		writeFrame(t, conn, uint32(2*i+1), requestFrame, wait)
	}
	if _, resp := readAnswer(t, conn); Code(resp.Status.Code) != ResourceExhausted {
		t.Errorf("one call too many: %+v", resp)
	}
	conn.Close()
	f.Server.calls.Wait()
	for range maxConns {
		f.dial(t)
	}
	extra := f.dial(t)
	if n, err := extra.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one connection too many: %d, %v", n, err)
	}
}

// FuzzConnection sends bytes to a server, which must not fall over them, keep them, or hang.
func FuzzConnection(f *testing.F) {
	frame := func(stream uint32, kind byte, message []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(message)))
		return append(append(binary.BigEndian.AppendUint32(b, stream), kind, 0), message...)
	}
	good := wire.Marshal(&wire.Request{Service: "containerd.task.v3.Task", Method: "Connect", Payload: []byte("\x0a\x01c")})
	f.Add(frame(1, requestFrame, good))
	f.Add(append(frame(1, requestFrame, good), frame(1, requestFrame, good)...))
	f.Add(frame(2, 3, []byte("x")))
	f.Add(frame(1, requestFrame, []byte("\xff\xff")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		f := startServer(t)
		conn := f.dial(t)
		if _, err := conn.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if f.Shutdown(10 * time.Second); time.Since(begin) >= 10*time.Second { // who only waits for the calls races with their beginning
			t.Error("a call hangs")
		}
	})
}
