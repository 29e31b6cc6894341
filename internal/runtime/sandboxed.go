// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/berth-run/berth/internal/shimapi"
)

// portForwardLimit bounds the connection to a port in a sandbox.
const portForwardLimit = 10 * time.Second

// forwardPrefix begins the names of the folders, in the state folder, with the sockets of connections to ports in sandboxes while these are made.
const forwardPrefix = "forward-"

// Stats asks the handler's runtime what a container uses that lives in a sandbox, not in a cgroup of its own. It starts a process, which ends
// with ctx. ErrUnsupported: the handler's containers have cgroups.
func (r *Runtime) Stats(ctx context.Context, handler, id string) (shimapi.TaskUsage, error) {
	h, err := r.Handler(handler)
	if err != nil {
		return shimapi.TaskUsage{}, err
	}
	if !h.Foreign {
		return shimapi.TaskUsage{}, fmt.Errorf("stats of container %s: runtime handler %s: %w", id, h.Name, ErrUnsupported)
	}
	var u shimapi.TaskUsage
	out, err := r.task(ctx, h, id, "stats", id)
	if err == nil {
		err = json.Unmarshal(out, &u)
	}
	if err != nil {
		return shimapi.TaskUsage{}, fmt.Errorf("stats of container %s: %w", id, err)
	}
	return u, nil
}

// DialSandbox connects to a TCP port of 127.0.0.1 inside the sandbox that a container is in, by `runsc port-forward --stream`. The connection ends as
// a whole: closing one direction ends both. ErrUnsupported: the handler has no such way.
func (r *Runtime) DialSandbox(ctx context.Context, handler, id string, port uint16) (net.Conn, error) {
	h, err := r.Handler(handler)
	if err != nil {
		return nil, err
	}
	if !h.Sandboxed {
		return nil, fmt.Errorf("runtime handler %s cannot reach ports inside its sandboxes, only those that listen on the pod's address: %w", h.Name, ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, portForwardLimit)
	defer cancel()
	r.forwards.Do(r.sweepForwards)
	dir, err := os.MkdirTemp(r.stateDir, forwardPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a folder for the connection to port %d: %w", port, err)
	}
	conn, err := r.dialSandbox(ctx, h, filepath.Join(dir, "s"), id, port)
	if err := os.RemoveAll(dir); err != nil {
		r.log.Warn("the folder of a connection to a sandbox stays", "error", err)
	}
	return conn, err
}

// sweepForwards removes what a daemon left that was killed while it connected.
func (r *Runtime) sweepForwards() {
	left, err := filepath.Glob(filepath.Join(r.stateDir, forwardPrefix+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		r.log.Warn("folders of earlier connections to sandboxes stay", "error", err)
	}
}

func (r *Runtime) dialSandbox(ctx context.Context, h Handler, socket, id string, port uint16) (net.Conn, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	// The runtime connects, hands the connection to the sandbox and ends: then it is there to be accepted.
	if _, err := r.task(ctx, h, id, "port-forward", "--stream", socket, id, strconv.Itoa(int(port))); err != nil {
		return nil, err
	}
	if err := listener.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, err
	}
	return listener.Accept()
}

// task runs one command of a handler's program.
func (r *Runtime) task(ctx context.Context, h Handler, id string, args ...string) ([]byte, error) {
	if err := validID(id); err != nil {
		return nil, err
	}
	all := append(slices.Clone(h.Args), "--root", h.Root)
	if h.SystemdCgroup {
		all = append(all, "--systemd-cgroup")
	}
	return runTool(ctx, h.Path, append(all, args...)...)
}
