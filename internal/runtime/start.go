// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/berth-run/berth/internal/linux/pidfd"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// shimRecord is the file, in the pod's state folder, that identifies the shim's process.
	shimRecord = "shim.json"
	// shimOOMScore spares the shim when memory runs out, though not before the kubelet (-999) and the daemon.
	// Whatever a container's score is to be must be set by its OCI spec: it would inherit this one.
	shimOOMScore = -998
	// serveCommand is how the shim is told to serve a pod.
	serveCommand = "serve"
)

// shimPath is where a shim, and so the OCI runtime, looks for programs.
const shimPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// shimEnvironment is all that they see of the daemon's environment.
var shimEnvironment = append(shimapi.Environment(), "PATH="+shimPath)

// ShimRequest says for whom to start a shim.
type ShimRequest struct {
	// Sandbox is the pod sandbox's ID.
	Sandbox string
}

// StartShim starts the sandbox's shim and connects to it, without waiting until it is ready: its sockets
// listen from the start. The shim does not end with the daemon. ErrShimRuns if there is one.
func (r *Runtime) StartShim(ctx context.Context, req ShimRequest) (*Shim, error) {
	shim, err := r.startShim(ctx, req.Sandbox)
	if err != nil {
		return nil, fmt.Errorf("start shim of sandbox %s: %w", req.Sandbox, err)
	}
	return shim, nil
}

func (r *Runtime) startShim(ctx context.Context, sandbox string) (*Shim, error) {
	if err := validID(sandbox); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir := r.podDir(sandbox)
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	running, err := r.findShims(dir)
	if err != nil {
		return nil, err
	}
	if len(running) > 0 {
		return nil, fmt.Errorf("%w: process %d", ErrShimRuns, running[0].PID)
	}
	if err := r.spawnShim(sandbox, dir); err != nil {
		return nil, errors.Join(err, r.KillShim(context.WithoutCancel(ctx), sandbox))
	}
	shim, err := r.connect(ctx, sandbox)
	if err != nil {
		return nil, errors.Join(err, r.KillShim(context.WithoutCancel(ctx), sandbox))
	}
	return shim, nil
}

// spawnShim leaves a shim that runs and is on record, or none.
func (r *Runtime) spawnShim(sandbox, dir string) (err error) {
	service, err := listen(shimapi.SocketPath(dir))
	if err != nil {
		return err
	}
	defer service.Close() // the shim has its own: when it is gone, nobody listens
	stdio, err := listen(shimapi.StdioSocketPath(dir))
	if err != nil {
		return err
	}
	defer stdio.Close()
	logFile, err := os.OpenFile(shimapi.LogPath(dir), os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	pidFD := -1
	process, err := os.StartProcess(r.shimPath, shimArgs(r.shimPath, dir), &os.ProcAttr{
		Dir: "/", Env: shimEnvironment, Files: []*os.File{null, null, logFile, service, stdio},
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidFD},
	})
	if err != nil {
		return err
	}
	// Nobody else waits for the process, so its pid is its own until the watch begins.
	if err := recordShim(dir, process.Pid); err != nil {
		err = errors.Join(err, process.Kill())
		_, waitErr := process.Wait()
		return errors.Join(err, waitErr, closePidFD(pidFD))
	}
	r.protectFromOOM(process.Pid, sandbox)
	return r.watch(sandbox, process, pidFD)
}

func shimArgs(shimPath, dir string) []string {
	return []string{filepath.Base(shimPath), serveCommand, "--dir", dir}
}

func recordShim(dir string, pid int) error {
	stat, err := proc.ReadStat(pid)
	if err != nil {
		return err
	}
	data, err := json.Marshal(proc.ID{PID: pid, StartTime: stat.StartTime})
	if err != nil {
		return err
	}
	temp := filepath.Join(dir, "."+shimRecord)
	if err := os.WriteFile(temp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, shimRecord))
}

// protectFromOOM leaves the shim at the daemon's own score where the capability to go below it is missing.
func (r *Runtime) protectFromOOM(pid int, sandbox string) {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(shimOOMScore)), 0)
	if err != nil {
		r.log.Debug("the shim keeps the daemon's OOM score", "sandbox", sandbox, "error", err)
	}
}

// KillShim ends the sandbox's shim, if there is one, with SIGKILL and waits until it is gone. It is for a shim that
// does not answer: its containers stay, see KillLeftOver. It never hits a process that only has the shim's old pid.
func (r *Runtime) KillShim(ctx context.Context, sandbox string) error {
	if err := r.killShim(ctx, sandbox); err != nil {
		return fmt.Errorf("kill shim of sandbox %s: %w", sandbox, err)
	}
	return nil
}

func (r *Runtime) killShim(ctx context.Context, sandbox string) error {
	if err := validID(sandbox); err != nil {
		return err
	}
	running, err := r.findShims(r.podDir(sandbox))
	if err != nil {
		return err
	}
	if len(running) > 0 { // a shim that was told to end may be on its way still
		r.expectKill(sandbox)
	}
	return pidfd.KillAll(ctx, running...)
}

// findShims returns the live shims of a pod: the one on record, and, where there is no readable record, any whose
// command line says so. The latter is what a daemon leaves that is killed between start and record.
func (r *Runtime) findShims(dir string) ([]proc.ID, error) {
	data, err := os.ReadFile(filepath.Join(dir, shimRecord))
	if err == nil {
		var fact proc.ID
		if json.Unmarshal(data, &fact) == nil && fact.PID > 0 {
			if fact.Runs() {
				return []proc.ID{fact}, nil
			}
			return nil, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if _, err := os.Lstat(shimapi.SocketPath(dir)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the sockets come first, so none was ever started
	}
	want := shimArgs(r.shimPath, dir)[1:]
	return proc.Find(func(args []string) bool { return len(args) == len(want)+1 && slices.Equal(args[1:], want) })
}
