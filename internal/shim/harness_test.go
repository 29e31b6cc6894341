// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

var (
	buildOnce sync.Once
	buildPath string
	buildErr  error
	buildDir  string
)

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// shimBinary builds berth-shim once; BERTH_TEST_SHIM_RACE=1 with the race detector.
func shimBinary(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		if buildDir, buildErr = os.MkdirTemp("", "berth-shim-test-"); buildErr != nil {
			return
		}
		buildPath = filepath.Join(buildDir, "berth-shim")
		args, cgo := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", buildPath}, "CGO_ENABLED=0"
		if os.Getenv("BERTH_TEST_SHIM_RACE") != "" {
			args, cgo = append(args, "-race"), "CGO_ENABLED=1"
		}
		cmd := osexec.Command("go", append(args, "../../cmd/berth-shim")...)
		cmd.Env = append(os.Environ(), cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("build berth-shim: %w\n%s", err, out)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return buildPath
}

// runcBinary finds the runtime that all tests use.
func runcBinary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("BERTH_TEST_RUNC"); path != "" {
		return path
	}
	if path, err := filepath.Abs("../../bin/runc"); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := osexec.LookPath("runc")
	if err != nil {
		t.Fatal("no runc: set BERTH_TEST_RUNC, or run `make` (bin/runc), or install runc")
	}
	return path
}

// testShim is a running berth-shim with its daemon's side.
type testShim struct {
	testing.TB
	dir     string // the pod's state folder
	logs    string
	runc    string
	cgroup  string // parent, below each hierarchy
	cmd     *osexec.Cmd
	exited  chan struct{}
	conn    *ttrpc.Client
	task    taskpb.TaskService
	shim    shimpb.ShimService
	ctx     context.Context
	counter int
	idleFDs int // with the daemon connected and no container
}

func startShim(t testing.TB) *testShim {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the shim's tests start containers: they need root")
	}
	runc := runcBinary(t) // ends the test where there is none
	base, err := os.MkdirTemp("", "berth-shim-")
	if err != nil {
		t.Fatal(err)
	}
	s := &testShim{
		TB: t, dir: filepath.Join(base, "pod"), logs: filepath.Join(base, "logs"), runc: runc,
		cgroup: "/" + filepath.Base(base), exited: make(chan struct{}),
	}
	for _, dir := range []string{s.dir, s.logs} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	s.ctx = ctx
	t.Cleanup(func() {
		cancel()
		if s.cmd != nil && s.cmd.Process != nil { // a test that failed may have left it
			s.cmd.Process.Kill()
			<-s.exited
		}
		s.removeCgroups()
		if t.Failed() {
			log, _ := os.ReadFile(shimapi.LogPath(s.dir))
			t.Logf("shim.log:\n%s", log)
		}
		os.RemoveAll(base)
	})
	s.launch()
	s.connect()
	s.info()
	s.idleFDs = len(s.fds())
	t.Cleanup(s.finish)
	return s
}

// launch hands over the sockets as the contract says.
func (s *testShim) launch() {
	s.Helper()
	var files []*os.File
	for _, path := range []string{shimapi.SocketPath(s.dir), shimapi.StdioSocketPath(s.dir)} {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			s.Fatal(err)
		}
		listener.SetUnlinkOnClose(false)
		file, err := listener.File()
		listener.Close()
		if err != nil {
			s.Fatal(err)
		}
		defer file.Close()
		files = append(files, file)
	}
	log, err := os.Create(shimapi.LogPath(s.dir))
	if err != nil {
		s.Fatal(err)
	}
	defer log.Close()
	s.cmd = osexec.Command(shimBinary(s), "serve", "--dir", s.dir)
	s.cmd.ExtraFiles, s.cmd.Stderr = files, log
	s.cmd.Env = append(shimapi.Environment(), "PATH="+os.Getenv("PATH"))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	go func() { s.cmd.Wait(); close(s.exited) }()
}

func (s *testShim) connect() {
	s.Helper()
	conn, err := net.Dial("unix", shimapi.SocketPath(s.dir))
	if err != nil {
		s.Fatal(err)
	}
	s.conn = ttrpc.NewClient(conn)
	s.task, s.shim = taskpb.NewTaskClient(s.conn), shimpb.NewShimClient(s.conn)
}

// finish deletes what is left and looks for what leaked.
func (s *testShim) finish() {
	s.Helper()
	select {
	case <-s.exited: // the test has ended the shim itself
		return
	default:
	}
	info := s.info()
	for _, task := range info.Tasks {
		if task.Status != shimpb.Status_STOPPED && task.Pid != 0 {
			if _, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: task.Id, Signal: 9, All: true}); err != nil && status.Code(err) != codes.NotFound { // it may just have ended
				s.Errorf("kill %s: %v", task.Id, err)
			}
			s.wait(task.Id, "")
		}
		s.delete(task.Id)
	}
	s.conn.Close()
	s.checkFDs()
	s.checkGoroutines()
	s.checkCgroups()
}

// checkFDs compares with what an idle shim without containers holds.
func (s *testShim) checkFDs() {
	s.Helper()
	var links []string
	for range 100 {
		links = s.fds()
		if !slices.ContainsFunc(links, leakedFD) && len(links) <= s.idleFDs {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.Errorf("open descriptors at the end: %q", links)
}

// leakedFD knows what only a container or an exec needs.
func leakedFD(link string) bool {
	return strings.HasPrefix(link, "pipe:") || strings.Contains(link, "pidfd") || strings.Contains(link, "memfd:") || strings.Contains(link, "pts/") || strings.Contains(link, "ptmx") || strings.HasSuffix(link, ".log") && !strings.HasSuffix(link, shimapi.LogName)
}

func (s *testShim) fds() []string {
	dir := fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.Error(err)
	}
	var links []string
	for _, entry := range entries {
		if link, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			links = append(links, link)
		}
	}
	return links
}

// checkGoroutines ends the shim with SIGQUIT, which makes the Go runtime print every goroutine.
func (s *testShim) checkGoroutines() {
	s.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		s.Error(err)
	}
	<-s.exited
	log, err := os.ReadFile(shimapi.LogPath(s.dir))
	if err != nil {
		s.Fatal(err)
	}
	if bytes.Contains(log, []byte("DATA RACE")) {
		s.Errorf("race in the shim:\n%s", log)
	}
	_, dump, ok := bytes.Cut(log, []byte("SIGQUIT: quit"))
	if !ok {
		s.Fatalf("no goroutines in shim.log:\n%s", log)
	}
	for _, leak := range []string{"(*pump)", "(*task)", "(*exec)", "(*process)", "(*runtimeCall)", "admit("} {
		if bytes.Contains(dump, []byte(leak)) {
			s.Errorf("leaked goroutine in %s:\n%s", leak, dump)
		}
	}
}

func (s *testShim) checkCgroups() {
	s.Helper()
	mounts, err := proc.CgroupMounts()
	if err != nil {
		s.Fatal(err)
	}
	for _, mount := range mounts {
		left, _ := filepath.Glob(mount + s.cgroup + "/*/cgroup.procs")
		for _, file := range left {
			s.Errorf("cgroup %s is left", filepath.Dir(file))
		}
	}
}

// pidsCgroup is the parent cgroup of the containers, where the pids controller is.
func (s *testShim) pidsCgroup() string {
	s.Helper()
	mounts, err := proc.CgroupMounts()
	if err != nil {
		s.Fatal(err)
	}
	if mount, ok := mounts["pids"]; ok {
		return mount + s.cgroup
	}
	return mounts[""] + s.cgroup
}

// removeCgroups clears away, with all processes: also after a test that failed.
func (s *testShim) removeCgroups() {
	mounts, _ := proc.CgroupMounts()
	for _, mount := range mounts {
		group := cgroup{procs: mount + s.cgroup}
		group.killAll(killLimit)
		children, _ := filepath.Glob(mount + s.cgroup + "/*/cgroup.procs")
		for _, child := range children {
			syscall.Rmdir(filepath.Dir(child))
		}
		syscall.Rmdir(mount + s.cgroup)
	}
}

// testContainer is what a test wants of a container.
type testContainer struct {
	script       string
	args         []string // instead of script
	created      bool     // two steps, not deferred
	hostPID      bool
	pidNamespace string // path
	terminal     bool
	memory       int64
	noLog        bool
	stdin        bool
	stdinOnce    bool
	checkpoint   string // folder of one that is restored
}

// spec is a small but complete OCI configuration.
func (s *testShim) spec(id string, c testContainer) map[string]any {
	args := c.args
	if args == nil {
		args = []string{"sh", "-c", c.script}
	}
	namespaces := []map[string]string{{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}}
	switch {
	case c.pidNamespace != "":
		namespaces = append(namespaces, map[string]string{"type": "pid", "path": c.pidNamespace})
	case !c.hostPID:
		namespaces = append(namespaces, map[string]string{"type": "pid"})
	}
	linux := map[string]any{"namespaces": namespaces, "cgroupsPath": s.cgroup + "/" + id}
	if c.memory != 0 {
		linux["resources"] = map[string]any{"memory": map[string]any{"limit": c.memory, "swap": c.memory}}
	}
	mount := func(target, kind string, options ...string) map[string]any {
		return map[string]any{"destination": target, "type": kind, "source": kind, "options": options}
	}
	return map[string]any{
		"ociVersion": "1.2.0",
		"process":    s.process(c.terminal, args...),
		"root":       map[string]any{"path": "rootfs"},
		"hostname":   "test",
		"mounts":     []any{mount("/proc", "proc"), mount("/dev", "tmpfs", "nosuid", "mode=755"), mount("/dev/pts", "devpts", "newinstance", "ptmxmode=0666"), mount("/tmp", "tmpfs")},
		"linux":      linux,
	}
}

func (s *testShim) process(terminal bool, args ...string) map[string]any {
	return map[string]any{
		"terminal": terminal, "user": map[string]any{"uid": 0, "gid": 0}, "args": args, "cwd": "/",
		"env": []string{"PATH=/bin"}, "noNewPrivileges": true,
	}
}

func mustJSON(t testing.TB, value any) []byte {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// bundle writes the bundle of a new container and returns its id.
func (s *testShim) bundle(c testContainer) string {
	s.Helper()
	s.counter++
	id := fmt.Sprintf("c%d", s.counter)
	bin := filepath.Join(shimapi.BundlePath(s.dir, id), "rootfs", "bin")
	for _, dir := range []string{bin, filepath.Join(filepath.Dir(bin), "proc"), filepath.Join(filepath.Dir(bin), "dev"), filepath.Join(filepath.Dir(bin), "tmp")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			s.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		s.Fatalf("the tests need Debian's busybox-static: %v", err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), busybox, 0o755); err != nil {
		s.Fatal(err)
	}
	for _, tool := range []string{"sh", "sleep", "tail", "echo", "cat", "true", "stty", "yes", "setsid", "head", "dd", "wc", "kill", "ls", "seq", "tr"} {
		if err := os.Symlink("busybox", filepath.Join(bin, tool)); err != nil {
			s.Fatal(err)
		}
	}
	config := mustJSON(s, s.spec(id, c))
	if err := os.WriteFile(filepath.Join(shimapi.BundlePath(s.dir, id), shimapi.ConfigName), config, 0o600); err != nil {
		s.Fatal(err)
	}
	return id
}

func (s *testShim) createRequest(id string, c testContainer) *taskpb.CreateTaskRequest {
	s.Helper()
	options := &shimpb.CreateOptions{
		Runtime: s.runc, RuntimeRoot: filepath.Join(s.dir, "runc"), LogPath: s.logPath(id), Deferred: !c.created, Native: true, Stdin: c.stdin,
		StdinOnce: c.stdinOnce,
	}
	if c.noLog {
		options.LogPath = ""
	}
	data, err := proto.Marshal(options)
	if err != nil {
		s.Fatal(err)
	}
	return &taskpb.CreateTaskRequest{
		Id: id, Bundle: shimapi.BundlePath(s.dir, id), Checkpoint: c.checkpoint, Options: &anypb.Any{TypeUrl: shimapi.CreateOptionsTypeURL, Value: data},
	}
}

func (s *testShim) logPath(id string) string { return filepath.Join(s.logs, id+".log") }

// create makes a container that is not started.
func (s *testShim) create(c testContainer) string {
	s.Helper()
	id := s.bundle(c)
	if _, err := s.task.Create(s.ctx, s.createRequest(id, c)); err != nil {
		s.Fatalf("create %s: %v", id, err)
	}
	return id
}

func (s *testShim) start(id string) int {
	s.Helper()
	resp, err := s.task.Start(s.ctx, &taskpb.StartRequest{Id: id})
	if err != nil {
		s.Fatalf("start %s: %v", id, err)
	}
	if resp.Pid == 0 {
		s.Fatalf("start %s: no pid", id)
	}
	return int(resp.Pid)
}

func (s *testShim) run(c testContainer) string {
	s.Helper()
	id := s.create(c)
	s.start(id)
	return id
}

func (s *testShim) wait(id, exec string) uint32 {
	s.Helper()
	resp, err := s.task.Wait(s.ctx, &taskpb.WaitRequest{Id: id, ExecId: exec})
	if err != nil {
		s.Fatalf("wait %s %s: %v", id, exec, err)
	}
	if age := time.Since(resp.ExitedAt.AsTime()); age < 0 || age > time.Minute {
		s.Errorf("%s %s exited at %v", id, exec, resp.ExitedAt.AsTime())
	}
	return resp.ExitStatus
}

func (s *testShim) kill(id string, sig syscall.Signal) {
	s.Helper()
	if _, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, Signal: uint32(sig)}); err != nil {
		s.Fatalf("kill %s: %v", id, err)
	}
}

func (s *testShim) delete(id string) *taskpb.DeleteResponse {
	s.Helper()
	resp, err := s.task.Delete(s.ctx, &taskpb.DeleteRequest{Id: id})
	if err != nil {
		s.Fatalf("delete %s: %v", id, err)
	}
	return resp
}

func (s *testShim) info() *shimpb.InfoResponse {
	s.Helper()
	info, err := s.shim.Info(s.ctx, &emptypb.Empty{})
	if err != nil {
		s.Fatalf("info: %v", err)
	}
	return info
}

func (s *testShim) taskInfo(id string) *shimpb.TaskInfo {
	s.Helper()
	for _, task := range s.info().Tasks {
		if task.Id == id {
			return task
		}
	}
	s.Fatalf("%s is not in Info", id)
	return nil
}

// output is a container's stdout as `kubectl logs` shows it.
func (s *testShim) output(id string) string {
	s.Helper()
	return reassemble(readLog(s, s.logPath(id)), "stdout")
}

// awaitOutput waits for a text in the log.
func (s *testShim) awaitOutput(id, text string) {
	s.Helper()
	s.eventually(text+" in the log", func() bool { return strings.Contains(s.output(id), text) })
}

func (s *testShim) eventually(what string, done func() bool) {
	s.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("waited in vain for %s", what)
		}
	}
}

func (s *testShim) initFact(id string) shimapi.InitFact {
	s.Helper()
	fact, err := shimapi.ReadInitFact(shimapi.BundlePath(s.dir, id))
	if err != nil {
		s.Fatal(err)
	}
	return fact
}

func (s *testShim) exitFact(id string) shimapi.ExitFact {
	s.Helper()
	fact, err := shimapi.ReadExitFact(shimapi.BundlePath(s.dir, id))
	if err != nil {
		s.Fatal(err)
	}
	return fact
}
