// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/berth-run/berth/internal/linux/fifo"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shim"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// socketDir is where containerd's own shims have their sockets, should it not say.
	socketDir = "/run/containerd/s"
	// logName is the FIFO in the bundle that takes a shim's log.
	logName = "log"
	// addressName is the file in the bundle with the socket's path, for delete.
	addressName = "address"
	// maxConfig bounds a bundle's config.json.
	maxConfig = 16 << 20
	// apiVersion is that of the Task API.
	apiVersion = 3
)

// groups are the annotations that say which containers are to share a shim; the first that is there counts.
var groups = []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"}

// start leaves a shim for the bundle that is the working directory, or finds the one of its group, and prints its address.
func (inv invocation) start(in io.Reader, out io.Writer) error {
	data, err := readInput(in)
	if err != nil {
		return err
	}
	// Before 2.3 containerd gives a shim its options alone, and the rest by the environment and the flags: those read as parameters without any.
	var params wire.BootstrapParams
	if err := wire.Unmarshal(data, &params); err != nil || params.InstanceID != inv.values["id"] {
		params = wire.BootstrapParams{}
	}
	if params.TTRPCAddress == "" {
		params.TTRPCAddress = os.Getenv("TTRPC_ADDRESS")
	}
	if params.SocketDir == "" {
		params.SocketDir = socketDir
	}
	socket, err := inv.socketPath(params.SocketDir)
	if err != nil {
		return err
	}
	if err := os.WriteFile(addressName, []byte(socket), 0o600); err != nil {
		return err
	}
	if err := inv.ensure(socket, params); err != nil {
		return err
	}
	answer, err := json.Marshal(struct {
		Version  int    `json:"version"`
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}{apiVersion, "unix://" + socket, "ttrpc"})
	if err != nil {
		return err
	}
	_, err = out.Write(answer)
	return err
}

// socketPath is the same for all containers of a group, and for no two containerds.
func (inv invocation) socketPath(dir string) (string, error) {
	group, err := readGroup(shimapi.ConfigName)
	if err != nil {
		return "", err
	}
	if group == "" {
		group = inv.values["id"]
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{"berth", inv.values["address"], inv.values["namespace"], group}, "\x00")))
	return filepath.Join(dir, fmt.Sprintf("%x", sum[:])), nil
}

func readGroup(config string) (string, error) {
	file, err := os.Open(config)
	if err != nil {
		return "", fmt.Errorf("read spec: %w", err)
	}
	defer file.Close()
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.NewDecoder(io.LimitReader(file, maxConfig)).Decode(&spec); err != nil {
		return "", fmt.Errorf("read spec: %w", err)
	}
	for _, name := range groups {
		if group := spec.Annotations[name]; group != "" {
			return group, nil
		}
	}
	return "", nil
}

// ensure makes a shim listen on the socket, unless one does.
func (inv invocation) ensure(socket string, params wire.BootstrapParams) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o711); err != nil {
		return err
	}
	if err := sock.ClearStale(socket); err != nil {
		if errors.Is(err, sock.ErrServed) {
			return nil
		}
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	if err = os.Chmod(socket, 0o600); err == nil {
		err = inv.spawn(listener, socket, params)
	}
	if err != nil {
		return errors.Join(err, os.Remove(socket))
	}
	return nil
}

// spawn starts the shim, which has nothing of containerd's but its log.
func (inv invocation) spawn(listener *net.UnixListener, socket string, params wire.BootstrapParams) error {
	calls, err := listener.File()
	if err != nil {
		return err
	}
	defer calls.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := fifo.Writer(logName)
	if errors.Is(err, os.ErrNotExist) { // started by hand
		log, err = null, nil
	}
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{os.Args[0], "-namespace", inv.values["namespace"], "-id", inv.values["id"], "-address", inv.values["address"],
		"-socket", socket, "-events", params.TTRPCAddress, serveAction}
	process, err := os.StartProcess("/proc/self/exe", args, &os.ProcAttr{
		Dir: "/", Env: environment(), Files: []*os.File{null, null, log, calls}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	if err = inv.place(process.Pid, params); err != nil {
		err = errors.Join(err, process.Kill())
		_, _ = process.Wait()
	}
	return err
}

// environment is what the shim needs, and what the OCI runtime sees of it.
func environment() []string {
	env := shimapi.Environment()
	for _, name := range shim.RuntimeEnvironment() {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// place makes the shim a likelier victim than containerd when memory runs out, by one point, and refuses to keep it where it is not wanted.
func (inv invocation) place(pid int, params wire.BootstrapParams) error {
	for _, extension := range params.Extensions {
		var options wire.RuncOptions
		if extension.Value.TypeURL == "containerd.runc.v1.Options" && wire.Unmarshal(extension.Value.Value, &options) == nil && options.ShimCgroup != "" {
			return fmt.Errorf("options: shim_cgroup %q: this shim stays in containerd's own cgroup; leave it out", options.ShimCgroup)
		}
	}
	score, err := proc.OOMScore(os.Getppid())
	if err == nil && score < 1000 {
		err = proc.SetOOMScore(pid, score+1, func() bool { return true })
	}
	if errors.Is(err, os.ErrPermission) {
		return nil
	}
	return err
}
