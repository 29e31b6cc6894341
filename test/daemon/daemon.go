// SPDX-License-Identifier: Apache-2.0

// Package daemon starts a real container runtime in folders, a network and cgroups of its own, and takes all
// of that away again. Tests use Start; the benchmarks, which compare runtimes, use New.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/leak"
)

// Kind is a container runtime that can be started.
type Kind string

// The runtimes. Containerd is the peer of the benchmarks.
const (
	Berth      Kind = "berth"
	Containerd Kind = "containerd"
)

// Spec says what to start. The zero value is Berth from the repository's bin folder.
type Spec struct {
	Kind Kind
	// Bin is the folder with berth, berth-shim, runc, cni/ and containerd/. Empty: see BinDir.
	Bin string
	// Program replaces the daemon's binary.
	Program string
	// OCIRuntime replaces runc.
	OCIRuntime string
	// Env is added to the daemon's environment; Relaunch may change it.
	Env []string
	// Launcher is put before the daemon's command line, for example to enter a cgroup.
	Launcher []string
	// NoNetwork leaves the CNI configuration folder empty.
	NoNetwork bool
	// CNIBin is searched for plugins before the real ones.
	CNIBin string
	// PauseImage is what containerd makes sandboxes of.
	PauseImage string
	// Global is put at the top of the configuration file, above all tables; Runc is added to its table [runtimes.runc]; Config
	// is added at the end.
	Global, Runc, Config string
}

// Daemon is a runtime with its folders and names.
type Daemon struct {
	Spec Spec
	// Dir holds all other folders. It is short: socket paths are limited to 107 bytes.
	Dir, Root, State, Netns, ConfDir, CertsDir, IPAM, Logs string
	Socket, ConfigPath                                     string
	// Network, Bridge and CgroupParent are names that no other daemon on the machine has.
	Network, Bridge, CgroupParent string
	// CgroupDriver is cgroupfs or systemd.
	CgroupDriver string
	// Subnet4 and Subnet6 are the pods' networks without the last part: "10.123.45." and "fd00:7b:2d::".
	Subnet4, Subnet6 string

	// Runtime and Images are clients of the socket. They survive restarts of the daemon.
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient

	conn *grpc.ClientConn
	mu   sync.Mutex // guards what follows
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd was waited for
}

// New prepares the folders and starts the daemon; it serves when New returns.
func New(ctx context.Context, spec Spec) (*Daemon, error) {
	d, err := Prepare(spec)
	if err != nil {
		return nil, err
	}
	if err := d.Launch(ctx); err != nil {
		return nil, errors.Join(err, fmt.Errorf("its log:\n%s", d.LogTail(40)), d.Close())
	}
	return d, nil
}

// Prepare makes the folders and files without starting anything.
func Prepare(spec Spec) (*Daemon, error) {
	if spec.Kind == "" {
		spec.Kind = Berth
	}
	if spec.Bin == "" {
		bin, err := BinDir()
		if err != nil {
			return nil, err
		}
		spec.Bin = bin
	}
	if spec.OCIRuntime == "" {
		spec.OCIRuntime = filepath.Join(spec.Bin, "runc")
	}
	dir, err := os.MkdirTemp("/tmp", "bt-")
	if err != nil {
		return nil, fmt.Errorf("make test folder: %w", err)
	}
	// Like /run: others pass through. The root of a user namespace must.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make test folder: %w", err)
	}
	x, y, id := rand.IntN(100)+100, rand.IntN(256), fmt.Sprintf("%06x", rand.IntN(1<<24))
	d := &Daemon{
		Spec: spec, Dir: dir, Root: dir + "/root", State: dir + "/state", Netns: dir + "/netns",
		ConfDir: dir + "/net.d", CertsDir: dir + "/certs.d", IPAM: dir + "/ipam", Logs: dir + "/logs",
		Socket: dir + "/cri.sock", ConfigPath: dir + "/config.toml",
		Network: "bt-net-" + id, Bridge: "bt" + id, CgroupParent: cgroupTop(cgroupDriver(), id), CgroupDriver: cgroupDriver(),
		Subnet4: fmt.Sprintf("10.%d.%d.", x, y), Subnet6: fmt.Sprintf("fd00:%x:%x::", x, y),
	}
	for _, sub := range []string{d.Root, d.State, d.Netns, d.ConfDir, d.CertsDir, d.Logs} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	err = os.WriteFile(d.ConfigPath, []byte(d.config()), 0o600)
	if err == nil && spec.Kind == Containerd { // as it makes them itself: the root of a user namespace passes through
		err = errors.Join(os.Chmod(d.Root, 0o711), os.Chmod(d.State, 0o711))
	}
	if err == nil && !spec.NoNetwork {
		err = d.WriteConflist(d.Conflist())
	}
	if err == nil {
		err = d.dial()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare daemon: %w", err), os.RemoveAll(dir))
	}
	return d, nil
}

// Attach connects to a runtime that somebody else started, of which only the clients and a folder for logs are
// known. Close leaves the runtime alone.
func Attach(socket string) (*Daemon, error) {
	dir, err := os.MkdirTemp("/tmp", "bt-")
	if err != nil {
		return nil, fmt.Errorf("make test folder: %w", err)
	}
	d := &Daemon{Spec: Spec{Kind: "socket"}, Dir: dir, Logs: dir + "/logs", Socket: socket}
	d.CgroupDriver = cgroupDriver()
	d.CgroupParent = cgroupTop(d.CgroupDriver, strings.ReplaceAll(filepath.Base(dir), "-", "_"))
	if err := d.dial(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return d, nil
}

// dial makes the clients. The limit is a kubelet's.
func (d *Daemon) dial() (err error) {
	d.conn, err = grpc.NewClient("unix://"+d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return fmt.Errorf("make client of %s: %w", d.Socket, err)
	}
	d.Runtime, d.Images = cri.NewRuntimeServiceClient(d.conn), cri.NewImageServiceClient(d.conn)
	return nil
}

// Start is New for a test. At the end of the test the daemon must hold no pod, and nothing may be left of
// what it made; a test that failed gets the daemon's log.
func Start(tb testing.TB, spec Spec) *Daemon {
	tb.Helper()
	d, err := New(context.Background(), spec)
	if err != nil {
		tb.Fatal(err)
	}
	d.Watch(tb)
	return d
}

// Watch registers the checks that Start promises.
func (d *Daemon) Watch(tb testing.TB) {
	tb.Helper()
	before, err := d.warm()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if !tb.Failed() {
			d.Scope().Check(tb, before)
			d.checkGoroutines(tb)
		}
		if tb.Failed() {
			tb.Logf("log of %s (%s):\n%s", d.Spec.Kind, d.Dir, d.LogTail(60))
		}
		if err := d.Close(); err != nil {
			tb.Errorf("clean up: %v", err)
		}
	})
}

// warm looks at the machine once the daemon has opened what it keeps open.
func (d *Daemon) warm() (leak.Snapshot, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Slow(10*time.Second))
	defer cancel()
	if _, err := d.Runtime.Status(ctx, &cri.StatusRequest{Verbose: true}); err != nil {
		return nil, fmt.Errorf("ask for status: %w", err)
	}
	if _, err := d.Images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{}); err != nil {
		return nil, fmt.Errorf("ask for image file systems: %w", err)
	}
	return d.Scope().Take()
}

// Scope is what the leak checks look at.
func (d *Daemon) Scope() leak.Scope {
	return leak.Scope{
		Dir: d.Dir, Network: d.Network, Bridge: d.Bridge, IPAM: d.IPAM, Cgroup: d.CgroupParent, Daemon: d.PID(),
		Tidy: d.tidy(), Descriptors: d.Spec.Kind == Berth,
	}
}

// Launch starts the daemon and waits until it serves.
func (d *Daemon) Launch(ctx context.Context) error {
	if err := d.start(); err != nil {
		return err
	}
	return d.WaitServing(ctx)
}

func (d *Daemon) start() error {
	argv, env := d.command()
	argv = append(append([]string{}, d.Spec.Launcher...), argv...)
	out, err := os.OpenFile(d.Dir+"/daemon.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open daemon log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(append(os.Environ(), env...), d.Spec.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cmd, d.done = cmd, done
	return nil
}

// Serving is how long a daemon may take until it answers.
const Serving = 20 * time.Second

// WaitServing returns when the daemon answers Version, or an error when it ended or time is over.
func (d *Daemon) WaitServing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Slow(Serving))
	defer cancel()
	for {
		_, err := d.Runtime.Version(ctx, &cri.VersionRequest{})
		if err == nil {
			return nil
		}
		d.conn.ResetConnectBackoff()
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to serve: %w", d.Spec.Kind, err)
		case <-d.Done():
			return fmt.Errorf("%s ended with %s before it served", d.Spec.Kind, d.cmd.ProcessState)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// WaitNetwork returns when the status says that the network is as wanted.
func (d *Daemon) WaitNetwork(ctx context.Context, ready bool) error {
	for {
		r, err := d.Runtime.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return fmt.Errorf("wait for network ready %v: %w", ready, err)
		}
		for _, c := range r.GetStatus().GetConditions() {
			if c.Type == cri.NetworkReady && c.Status == ready {
				return nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Done is closed when the daemon has ended.
func (d *Daemon) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

// PID is the daemon's process ID, 0 when it does not run.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return 0
	}
	select {
	case <-d.done:
		return 0
	default:
		return d.cmd.Process.Pid
	}
}

// Signal sends the daemon a signal and returns how long it took to end, at most the limit.
func (d *Daemon) Signal(sig syscall.Signal, limit time.Duration) (time.Duration, error) {
	pid, begin := d.PID(), time.Now()
	if pid == 0 {
		return 0, nil
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return 0, fmt.Errorf("signal %s: %w", d.Spec.Kind, err)
	}
	select {
	case <-d.Done():
		return time.Since(begin), nil
	case <-time.After(limit):
		return limit, fmt.Errorf("%s still runs %s after %s", d.Spec.Kind, limit, sig)
	}
}

// Kill ends the daemon as a crash does.
func (d *Daemon) Kill() error {
	_, err := d.Signal(syscall.SIGKILL, Slow(10*time.Second))
	return err
}

// Restart kills the daemon and starts it again.
func (d *Daemon) Restart(ctx context.Context) error {
	if err := d.Kill(); err != nil {
		return err
	}
	return d.Launch(ctx)
}

// Log is what the daemon wrote.
func (d *Daemon) Log() string {
	data, _ := os.ReadFile(d.Dir + "/daemon.log")
	return string(data)
}

// LogTail is the end of what the daemon and its shims wrote.
func (d *Daemon) LogTail(lines int) string {
	all := strings.Split(strings.TrimSpace(d.Log()), "\n")
	for i, line := range all {
		all[i] = line[:min(len(line), 600)]
	}
	tail := strings.Join(all[max(0, len(all)-lines):], "\n")
	shims, _ := filepath.Glob(d.State + "/pods/*/shim.log")
	for _, s := range shims {
		if data, _ := os.ReadFile(s); len(data) > 0 {
			tail += "\n" + s + ":\n" + string(data)
		}
	}
	return tail
}

// Close ends the daemon and removes by force whatever is left of it and its pods.
func (d *Daemon) Close() error {
	_, err := d.Signal(syscall.SIGTERM, Slow(5*time.Second))
	if err != nil {
		err = errors.Join(err, d.Kill())
	}
	d.conn.Close()
	if os.Getenv("BERTH_TEST_KEEP") != "" {
		return err
	}
	return errors.Join(err, d.remains().sweep(), d.dropSlice())
}

// ImageFiles lists what is stored of images: all files but databases and locks.
func (d *Daemon) ImageFiles() []string {
	var files []string
	filepath.WalkDir(filepath.Join(d.Root, "image"), func(path string, e fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err == nil && !e.IsDir() && ext != ".db" && ext != ".lock" {
			files = append(files, path)
		}
		return nil
	})
	return files
}
