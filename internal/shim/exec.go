// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/memfd"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/linux/pty"
	"github.com/berth-run/berth/internal/linux/reaper"
	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// maxExecs bounds the execs of one container that are not deleted.
const maxExecs = 256

// standInGrace is how long the process that stands for an exec in a sandboxed runtime may take to end it.
const standInGrace = 2 * time.Second

// exec is a process that was started in a running container.
type exec struct {
	id       string
	process  *process
	launched chan struct{} // closed when launchExec is over, well or not
	clients  clients
	lease    *net.UnixConn // nil: the exec does not depend on its client
	piped    bool          // the lease has brought pipes for the outputs
	pipes    []int         // those, until the process has them
	tty      bool
	size     pty.Size // for a terminal that the runtime gives none

	telling sync.Mutex
	told    bool // the lease has got the exit

	// Of an exec that containerd has asked for; nil otherwise.
	paths   *streamPaths
	pending *pendingExec
}

func newExec(id string) *exec {
	return &exec{id: id, process: newProcess(), launched: make(chan struct{})}
}

// startExec starts the process and returns its pid.
func (t *task) startExec(req *wire.ExecRequest, waiting *streams) (int, error) {
	e := newExec(req.ExecID)
	if err := t.addExec(e); err != nil {
		return 0, err
	}
	err := e.connect(t, req, waiting)
	if err == nil {
		if e.lease != nil {
			go e.hold(t, e.lease)
		}
		var pid int
		if pid, err = t.runExec(e, req.Process); err == nil {
			return pid, nil
		}
	}
	e.clients.hangUp()
	sock.CloseAll(e.pipes)
	e.release()
	t.removeExec(e)
	return 0, err
}

// runExec starts the process of an exec that has its clients, and returns its pid.
func (t *task) runExec(e *exec, process []byte) (int, error) {
	if err := t.launchExec(e, process); err != nil {
		e.process.closeStreams()
		if rpc.CodeOf(err) == rpc.Unknown && t.init.ending() {
			err = rpc.Errorf(rpc.FailedPrecondition, "exec in container %s: it has just ended: %v", t.id, err)
		}
		return 0, err
	}
	if t.options.Native {
		if err := e.setOOMScore(t, process); err != nil {
			t.slog.Error("an exec keeps the oom_score_adj of the container's start", "container", t.id, "exec", e.id, "err", err)
		}
	}
	e.process.mu.Lock()
	child := e.process.child
	e.process.mu.Unlock()
	child.AfterExit(e.exited)
	return child.PID, nil
}

// addExec takes the id.
func (t *task) addExec(e *exec) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase != running {
		return t.wrongPhaseLocked("exec in")
	}
	if _, ok := t.execs[e.id]; ok {
		return rpc.Errorf(rpc.AlreadyExists, "exec %s of container %s exists", e.id, t.id)
	}
	if len(t.execs) >= maxExecs {
		return rpc.Errorf(rpc.ResourceExhausted, "container %s has %d execs", t.id, maxExecs)
	}
	if t.execs == nil {
		t.execs = make(map[string]*exec)
	}
	t.execs[e.id] = e
	return nil
}

func (t *task) removeExec(e *exec) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.execs[e.id] == e {
		delete(t.execs, e.id)
	}
	if len(t.execs) == 0 {
		t.execs = nil // a map keeps the room that it once needed
	}
}

func (t *task) findExec(id string) (*exec, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.execs[id]; ok {
		return e, nil
	}
	return nil, rpc.Errorf(rpc.NotFound, "exec %s of container %s is not known", id, t.id)
}

func (t *task) allExecs() []*exec {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*exec, 0, len(t.execs))
	for _, e := range t.execs {
		all = append(all, e)
	}
	return all
}

// connect takes the connections that the client has made for this exec.
func (e *exec) connect(t *task, req *wire.ExecRequest, waiting *streams) error {
	if req.Lease {
		lease, ok := waiting.take(t.id, e.id, shimapi.Lease)
		if !ok {
			return rpc.Errorf(rpc.FailedPrecondition, "exec %s: the lease is not connected to the stdio socket", e.id)
		}
		e.lease, e.pipes, e.piped = lease.conn, lease.pipes, lease.pipes != nil
	}
	wanted := [3]bool{req.Stdin, req.Stdout && !e.piped, req.Stderr && !e.piped}
	for i, stream := range []shimapi.Stream{shimapi.Stdin, shimapi.Stdout, shimapi.Stderr} {
		if !wanted[i] {
			continue
		}
		found, ok := waiting.take(t.id, e.id, stream)
		if !ok {
			return rpc.Errorf(rpc.FailedPrecondition, "exec %s: %s is not connected to the stdio socket", e.id, stream)
		}
		e.clients[i] = found.conn
	}
	return nil
}

// release lets go of the client; again, or without a lease, it does nothing.
func (e *exec) release() {
	if e.lease != nil {
		e.lease.Close()
	}
}

// hold waits for the end of the lease. When the client has hung up rather than let the exec be deleted, it forgets the exec, and ends it unless the client
// had been told of its end. One that has ended otherwise may have done so for want of its client, by SIGPIPE, and have left children.
func (e *exec) hold(t *task, lease *net.UnixConn) {
	_, err := lease.Read(make([]byte, 1))
	lease.Close()
	if errors.Is(err, net.ErrClosed) {
		return
	}
	e.telling.Lock()
	told := e.told && errors.Is(err, io.EOF) // an exit that it has not read makes it ECONNRESET
	e.telling.Unlock()
	if !told {
		t.slog.Info("the client of an exec is gone", "container", t.id, "exec", e.id)
		e.abandon(t)
	}
	e.process.closeStreams()
	t.removeExec(e)
}

// hangUpGrace is how long an abandoned exec may take to end by itself.
const hangUpGrace = 2 * time.Second

// abandonPace is how often the end of a launch is tried for that has nothing to kill at the moment.
const abandonPace = 100 * time.Millisecond

// abandon ends an exec as the end of a terminal's line does: SIGHUP, and SIGKILL for what is deaf to it, and for a runtime that is still busy
// with the start. What the process has put into the background, and shielded from SIGHUP, lives on once the process itself has ended.
func (e *exec) abandon(t *task) {
	grace := time.NewTimer(hangUpGrace)
	defer grace.Stop()
	select {
	case <-e.launched:
		if e.process.pid() == 0 { // it did not come to be
			return
		}
		if err := e.tree(t).hangUp(); err != nil {
			t.slog.Warn("an abandoned exec may not have been told so", "container", t.id, "exec", e.id, "err", err)
		}
		select {
		case <-e.process.exited:
			return
		case <-grace.C:
		}
	case <-grace.C:
		e.endLaunch(t)
		if e.process.pid() == 0 {
			return
		}
	}
	if err := e.kill(t, syscall.SIGKILL, true); err != nil && !e.process.ended() {
		t.slog.Error("an abandoned exec does not end", "container", t.id, "exec", e.id, "err", err)
	}
}

// endLaunch kills the runtime, and what it has started by then, until the launch is over.
func (e *exec) endLaunch(t *task) {
	for {
		_ = e.kill(t, syscall.SIGKILL, true) // just before the runtime's start, and just after its end, there is nothing to kill
		select {
		case <-e.launched:
			return
		case <-time.After(abandonPace):
		}
	}
}

// launchExec runs `runtime exec --detach`.
func (t *task) launchExec(e *exec, spec []byte) error {
	defer close(e.launched)
	terminal, err := jsonField(spec, "terminal")
	if err != nil {
		return rpc.Errorf(rpc.InvalidArgument, "exec %s: process: %v", e.id, err)
	}
	e.tty = string(terminal) == "true"
	if e.tty && e.piped {
		return rpc.Errorf(rpc.InvalidArgument, "exec %s: a terminal's output comes over a connection, not into pipes", e.id)
	}
	if e.tty && !t.options.Native { // runc does it itself, before the process begins
		if e.size, err = consoleSize(spec); err != nil {
			return rpc.Errorf(rpc.InvalidArgument, "exec %s: process: %v", e.id, err)
		}
	}
	specFile, err := memfd.New("process", spec)
	if err != nil {
		return err
	}
	defer specFile.Close()
	pidFile := filepath.Join(t.bundle, "exec-"+e.id+".pid")
	defer os.Remove(pidFile) // the runtime may not have come to writing it
	call := &runtimeCall{options: t.options, extra: specFile}
	if t.options.Native {
		call.env = oneThread
	}
	call.args = []string{"exec", "--detach", "--process", fdPath(runtimeExtraFD), "--pid-file", pidFile}
	if e.tty {
		call.stdio, err = newTerminal(t.runtime.null, t.bundle, "console-"+e.id[:min(len(e.id), 32)])
		if err == nil {
			call.more = call.stdio.tty.dir
			call.args = append(call.args, "--console-socket", call.stdio.tty.address(runtimeExtraFD+1))
		}
	} else {
		call.stdio, err = newStdio(t.runtime.null, t.options, e.clients[0] != nil, e.clients[1] != nil, e.clients[2] != nil, e.pipes)
		e.pipes = nil
	}
	if err != nil {
		return err
	}
	call.args = append(call.args, t.id)
	return e.process.launch(t.runtime, call, pidFile, e.wire)
}

// consoleSize is that of an OCI process; the zero one where it has none.
func consoleSize(process []byte) (size pty.Size, err error) {
	raw, err := jsonField(process, "consoleSize")
	if err == nil && raw != nil {
		err = json.Unmarshal(raw, &size)
	}
	return size, err
}

// wire connects the process's streams with the client's connections.
func (e *exec) wire(s *stdio, terminal *os.File) {
	if terminal != nil && e.size != (pty.Size{}) {
		_ = pty.SetSize(terminal, e.size.Width, e.size.Height) // it has ended at once: the pump tells
	}
	e.process.join(s, terminal, &e.clients, e.lease != nil)
}

// exited lets the outputs run empty and makes the exit known at once: a client that is slow to read delays
// its own end of file, and what its lease tells, nothing else.
func (e *exec) exited(exit reaper.Exit) {
	pumps := e.process.allPumps()
	for _, pump := range pumps {
		if _, ok := pump.sink.(*stdinSink); ok {
			pump.stop()
		} else {
			pump.drain()
		}
	}
	e.clients.hangUp()
	e.process.finish(exitStatus{pid: exit.PID, code: exit.Code(), signal: exit.Signal(), at: exit.At})
	if e.lease != nil && passedOn(pumps) {
		e.tell(exit.Code())
	}
}

// tell passes the exit on to the client.
func (e *exec) tell(code uint32) {
	e.telling.Lock()
	defer e.telling.Unlock()
	e.told = shimapi.WriteExecExit(e.lease, code) == nil // otherwise it is gone, as hold hears
}

// kill signals the exec's process, or its whole tree.
func (e *exec) kill(t *task, sig syscall.Signal, all bool) error {
	if !all {
		if e.process.ended() {
			return rpc.Errorf(rpc.NotFound, "exec %s has already finished", e.id)
		}
		return e.process.signal(sig)
	}
	if err := t.thawFor(sig); err != nil {
		return err
	}
	if e.process.pid() == 0 {
		if done, err := e.killLaunch(sig); done || err != nil {
			return err
		}
	}
	if sig == syscall.SIGKILL && !t.options.Native && e.process.signal(syscall.SIGTERM) == nil {
		// Its process here only stands for it, and passes no SIGKILL on.
		select {
		case <-e.process.exited:
			return nil
		case <-time.After(standInGrace):
		}
	}
	tree := e.tree(t)
	if sig != syscall.SIGKILL {
		_, err := tree.signal(sig)
		return err
	}
	err := tree.kill()
	select { // reaped, too, when the caller hears of it
	case <-e.process.exited:
	case <-time.After(killLimit):
		err = errors.Join(err, rpc.Errorf(rpc.DeadlineExceeded, "exec %s does not end", e.id))
	}
	return err
}

// tree is of a process that has been started.
func (e *exec) tree(t *task) *processTree {
	return &processTree{group: t.group(), leader: e.process.pid(), startTime: e.process.ticks()}
}

// killLaunch kills the runtime that is about to start the process, with all that it has started. It reports done unless the
// runtime was faster.
func (e *exec) killLaunch(sig syscall.Signal) (done bool, err error) {
	e.process.mu.Lock()
	launcher := e.process.launcher
	e.process.mu.Unlock()
	if launcher == nil || sig != syscall.SIGKILL {
		return false, rpc.Errorf(rpc.FailedPrecondition, "exec %s is not started", e.id)
	}
	if stat, err := proc.ReadStat(launcher.PID); err == nil {
		tree := &processTree{leader: launcher.PID, startTime: stat.StartTime}
		if err := tree.kill(); err != nil {
			return false, err
		}
	}
	select {
	case <-e.launched:
		return e.process.pid() == 0, nil
	case <-time.After(killLimit):
		return false, rpc.Errorf(rpc.DeadlineExceeded, "exec %s: the runtime does not end", e.id)
	}
}

// ticks is the start time of the process in clock ticks since boot, 0 if it is not known.
func (p *process) ticks() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.startTime
}
