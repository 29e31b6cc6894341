// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/pty"
	"github.com/berth-run/berth/internal/shim/wire"
)

// TestMain lets the test's program be the one that it tests: a terminal wants the leader of a session.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "task" {
		os.Exit(Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// masterOf takes the terminal that is sent to a socket.
func masterOf(t *testing.T, l *net.UnixListener) *os.File {
	t.Helper()
	if err := l.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rights := make([]byte, 64)
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 64), rights)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fds[0]), "master")
	t.Cleanup(func() { master.Close() })
	return master
}

// shimWithTerminal answers well, tells the sizes that it is given, and lets Wait end with code 9 when it is told.
type shimWithTerminal struct {
	created chan wire.CreateTaskRequest
	opened  chan struct{} // when the test has opened the FIFOs for it
	sizes   chan wire.ResizePtyRequest
	end     chan struct{}
}

func (s *shimWithTerminal) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go answerAll(conn, func(request *wire.Request) wire.Message {
			switch request.Method {
			case "Create":
				var create wire.CreateTaskRequest
				_ = wire.Unmarshal(request.Payload, &create) // an empty one fails the test
				s.created <- create
				<-s.opened
			case "ResizePty":
				var resize wire.ResizePtyRequest
				_ = wire.Unmarshal(request.Payload, &resize)
				s.sizes <- resize
			case "Wait":
				<-s.end
				return &wire.WaitResponse{ExitStatus: 9}
			}
			return &wire.Empty{}
		})
	}
}

func answerAll(conn net.Conn, answer func(*wire.Request) wire.Message) {
	defer conn.Close()
	for {
		header, request, err := readRequest(conn)
		if err != nil {
			return
		}
		reply(conn, header, &wire.Response{Payload: wire.Marshal(answer(request))})
	}
}

func TestATerminalsBytesAndSizesAreCarried(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	shim := &shimWithTerminal{created: make(chan wire.CreateTaskRequest), opened: make(chan struct{}), sizes: make(chan wire.ResizePtyRequest, 10), end: make(chan struct{})}
	go shim.serve(l)
	console, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "console"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	c := script(t, "echo unix://"+dir+"/s")
	report, reported, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	// The process that stands for the container, as detach starts it.
	p := exec.Command("/proc/self/exe", "task", "--monitor", "--shim", c.shim, "--root", c.root, "run", "--bundle", bundle(t), "--console-socket", filepath.Join(dir, "console"), "c1")
	p.ExtraFiles, p.Stderr = []*os.File{nil, nil, nil, reported}, os.Stderr
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Process.Kill() }() // it has ended, if all went well
	reported.Close()
	master := masterOf(t, console)
	if err := pty.SetSize(master, 91, 37); err != nil {
		t.Fatal(err)
	}
	create := <-shim.created
	if !create.Terminal || create.Stdin == "" || create.Stdout == "" || create.Stderr != "" {
		t.Errorf("created with %+v", create)
	}
	input, err := os.OpenFile(create.Stdin, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	output, err := os.OpenFile(create.Stdout, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	close(shim.opened)
	if text, err := io.ReadAll(report); string(text) != started || err != nil {
		t.Fatalf("reported %q, %v", text, err)
	}
	for _, want := range []wire.ResizePtyRequest{{ID: "c1", Width: 91, Height: 37}, {ID: "c1", Width: 44, Height: 22}} {
		if got := <-shim.sizes; got != want {
			t.Errorf("size %+v, want %+v", got, want)
		}
		if err := pty.SetSize(master, 44, 22); err != nil {
			t.Fatal(err)
		}
	}
	typed := "a line\r\x03\x04\x13\n"
	if _, err := master.WriteString(typed); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(typed))
	if _, err := io.ReadFull(input, got); err != nil || string(got) != typed {
		t.Errorf("input %q, %v", got, err)
	}
	shown := strings.Repeat("0123456789abcde\n", 8<<10)
	go func() {
		_, _ = output.WriteString(shown) // what is missing is missed below
		output.Close()
		close(shim.end)
	}()
	time.Sleep(50 * time.Millisecond) // the end of the process does not cut off what nobody has read yet
	seen, err := io.ReadAll(master)   // EIO is a terminal's end
	if string(seen) != shown || err != nil && !strings.Contains(err.Error(), "input/output") {
		t.Errorf("%d of %d bytes, %v", len(seen), len(shown), err)
	}
	if err := p.Wait(); p.ProcessState.ExitCode() != 9 {
		t.Errorf("ended with %v", err)
	}
	var s state
	if data, err := os.ReadFile(filepath.Join(c.dir(), "state.json")); err != nil || json.Unmarshal(data, &s) != nil || s.Version != 2 {
		t.Errorf("state %q, %v", data, err)
	}
}
