// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/shim/wire"
)

// The fake shim is this test's own program under another name. It is good at its trade (a container is a `sleep` in the container's cgroups) but for the
// faults that a file beside it lists, one "STEP=FAULT" a line: a step is an action of the program (start, delete) or a method of its service.

const (
	fakeName   = "containerd-shim-fake-v1"
	faultsName = "faults"
	pidName    = "fake.pid"
	ttrpcHead  = 10
)

// fakeShim is one invocation of the program.
type fakeShim struct {
	dir    string // of the program
	id     string
	bundle string
	args   []string
	faults map[string]string

	mu    sync.Mutex // guards child
	child *fakeSon
}

// fakeSon is the container's process.
type fakeSon struct {
	*os.Process
	ended chan struct{}
}

// fakeMain runs the fake shim and returns its exit code.
func fakeMain(args []string) int {
	f := &fakeShim{dir: filepath.Dir(args[0]), args: args, faults: map[string]string{}}
	text, err := os.ReadFile(filepath.Join(f.dir, faultsName))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for line := range strings.FieldsSeq(string(text)) {
		step, fault, _ := strings.Cut(line, "=")
		f.faults[step] = fault
	}
	for i := range args[:len(args)-1] {
		switch args[i] {
		case "-id":
			f.id = args[i+1]
		case "-bundle":
			f.bundle = args[i+1]
		}
	}
	action := args[len(args)-1]
	f.fail(action, nil, nil)
	switch action {
	case "start":
		err = f.start()
	case "delete":
		err = freeFake(f.bundle)
	case "serve":
		err = f.serve()
	default:
		err = fmt.Errorf("action %q is not known", action)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (f *fakeShim) socket() string { return filepath.Join(f.dir, f.id[:12]) }

// fail does what the faults have for a step, and tells whether it did.
func (f *fakeShim) fail(step string, conn io.Writer, header []byte) bool {
	switch f.faults[step] {
	case "hangs":
		time.Sleep(time.Hour)
	case "dies":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "garbage":
		if conn == nil {
			fmt.Println("hello")
			os.Exit(0)
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
	case "refuses":
		if conn == nil {
			fmt.Fprintln(os.Stderr, "refused by the test")
			os.Exit(3)
		}
		answerFake(conn, header, &wire.Response{Status: wire.RPCStatus{Code: 9, Message: "refused by the test"}})
	case "":
		return false
	}
	return true
}

// start leaves a shim and tells its address.
func (f *fakeShim) start() error {
	args := append(append([]string{}, f.args[1:len(f.args)-1]...), "serve")
	cmd := exec.Command(f.args[0], args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", f.socket()); err == nil {
			conn.Close()
			fmt.Println("unix://" + f.socket())
			return nil
		}
	}
	return fmt.Errorf("nobody listens at %s", f.socket())
}

func (f *fakeShim) serve() error {
	l, err := net.Listen("unix", f.socket())
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go f.converse(conn)
	}
}

func (f *fakeShim) converse(conn net.Conn) {
	defer conn.Close()
	for {
		header := make([]byte, ttrpcHead)
		if _, err := io.ReadFull(conn, header); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(header))
		var request wire.Request
		if _, err := io.ReadFull(conn, body); err != nil || wire.Unmarshal(body, &request) != nil {
			return
		}
		if f.fail(request.Method, conn, header) {
			continue
		}
		answer, err := f.call(request)
		response := &wire.Response{Payload: wire.Marshal(answer)}
		if err != nil {
			response = &wire.Response{Status: wire.RPCStatus{Code: 2, Message: err.Error()}}
		}
		answerFake(conn, header, response)
		if request.Method == "Shutdown" {
			os.Exit(0)
		}
	}
}

func answerFake(conn io.Writer, header []byte, response *wire.Response) {
	body := wire.Marshal(response)
	head := append([]byte{}, header...)
	binary.BigEndian.PutUint32(head, uint32(len(body)))
	head[8] = 2
	_, _ = conn.Write(append(head, body...))
}

func (f *fakeShim) call(r wire.Request) (wire.Message, error) {
	switch r.Method {
	case "Create":
		var create wire.CreateTaskRequest
		if err := wire.Unmarshal(r.Payload, &create); err != nil {
			return &wire.Empty{}, err
		}
		return f.create(create)
	case "Connect": //nolint:usestdlibvars // not HTTP
		return &wire.ConnectResponse{ShimPID: uint32(os.Getpid()), TaskPID: uint32(f.son().Pid)}, nil
	case "Start":
		return &wire.PIDResponse{PID: uint32(f.son().Pid)}, nil
	case "Wait":
		return f.wait()
	case "Kill":
		var kill wire.KillRequest
		if err := wire.Unmarshal(r.Payload, &kill); err != nil {
			return &wire.Empty{}, err
		}
		if son := f.son(); son != nil {
			return &wire.Empty{}, ignoreGone(son.Signal(syscall.Signal(kill.Signal)))
		}
	case "Delete": //nolint:usestdlibvars // not HTTP
		return &wire.DeleteResponse{}, freeFake(f.bundle)
	}
	return &wire.Empty{}, nil
}

func (f *fakeShim) son() *fakeSon {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.child
}

func (f *fakeShim) create(r wire.CreateTaskRequest) (wire.Message, error) {
	f.bundle = r.Bundle
	son := exec.Command("sleep", "1000")
	son.Dir = r.Bundle
	if err := son.Start(); err != nil {
		return &wire.Empty{}, err
	}
	f.mu.Lock()
	f.child = &fakeSon{son.Process, make(chan struct{})}
	go func() {
		defer close(f.child.ended)
		_ = son.Wait() // it is killed
	}()
	f.mu.Unlock()
	if err := os.WriteFile(filepath.Join(r.Bundle, pidName), []byte(strconv.Itoa(son.Process.Pid)), 0o600); err != nil {
		return &wire.Empty{}, err
	}
	groups, err := fakeCgroups(r.Bundle)
	for _, g := range groups {
		if err := os.MkdirAll(g, 0o755); err != nil {
			return &wire.Empty{}, err
		}
		if strings.HasPrefix(g, "/sys/fs/cgroup/cpuset/") { // takes nobody before it is told which processors it has
			continue
		}
		if err := os.WriteFile(filepath.Join(g, "cgroup.procs"), []byte(strconv.Itoa(son.Process.Pid)), 0o600); err != nil {
			return &wire.Empty{}, err
		}
	}
	return &wire.PIDResponse{PID: uint32(son.Process.Pid)}, err
}

func (f *fakeShim) wait() (wire.Message, error) {
	if s := f.son(); s != nil {
		<-s.ended
	}
	return &wire.WaitResponse{ExitStatus: 128 + uint32(syscall.SIGKILL)}, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// fakeCgroups are the folders of the container's cgroup, in all hierarchies.
func fakeCgroups(bundle string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var config struct{ Linux struct{ CgroupsPath string } }
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	all, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for i := range all {
		all[i] = filepath.Join(filepath.Dir(all[i]), config.Linux.CgroupsPath)
	}
	return all, err
}

// freeFake frees what a container has, like runc's `delete --force`.
func freeFake(bundle string) error {
	if data, err := os.ReadFile(filepath.Join(bundle, pidName)); err == nil {
		if pid, err := strconv.Atoi(string(data)); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
	}
	groups, err := fakeCgroups(bundle)
	if err != nil {
		return err
	}
	for _, g := range groups {
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if err := syscall.Rmdir(g); err == nil || errors.Is(err, syscall.ENOENT) {
				break
			}
		}
	}
	return nil
}
