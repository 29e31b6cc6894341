// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/reaper"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// settleLimit is how long an exit waits for the log to take the last output.
	settleLimit = time.Second
	// startFailed is the exit code of a container whose start failed, as containerd has it.
	startFailed = 128
)

// phase is where a task stands.
//
//	creating → created ──→ starting → running → stopped → deleting
//	              └─(killed, not deferred)────────→┘
//
// created with deferred options has no process; Start that fails leads to stopped if nothing is left to
// start, otherwise back to created.
type phase int

const (
	creating phase = iota
	created
	starting
	running
	stopped
	deleting
)

func (p phase) String() string {
	return [...]string{"being created", "created", "being started", "running", "stopped", "being deleted"}[p]
}

// task is one container.
type task struct {
	id      string
	bundle  string
	options *wire.CreateOptions
	// checkpointed is the folder of a checkpoint that Start restores; empty: it runs what the spec says.
	checkpointed string
	spec         taskSpec
	log          *criLog
	slog         *slog.Logger
	runtime      *ociRuntime
	init         *process
	oom          *oomLedger // of the pod

	// What clients attach to, set before the phase is running.
	outputs [2]*broadcast // stdout, or the terminal; stderr
	input   *input        // nil: no stdin

	// Of a container of containerd's: its streams, instead of those, and arguments of the runtime's create; nil otherwise.
	paths      *streamPaths
	clients    clients
	createArgs []string

	checkpointing atomic.Bool

	mu        sync.Mutex
	phase     phase
	paused    bool
	cgroup    cgroup
	oomKilled bool
	execs     map[string]*exec
}

// prepare opens what must be right before anything is started.
func (t *task) prepare() (err error) {
	if t.spec, err = readSpec(t.bundle); err != nil {
		return rpc.Errorf(rpc.InvalidArgument, "%v", err)
	}
	pod, err := podCgroup(t.spec.cgroupsPath, t.options.SystemdCgroup)
	if err == nil {
		err = t.oom.open(pod)
	}
	if err != nil {
		t.slog.Warn("OOM kills may be missed", "container", t.id, "err", err)
	}
	if t.log, err = openLog(t.options.LogFolder, t.options.LogPath); err != nil {
		return rpc.Errorf(rpc.FailedPrecondition, "%v", err)
	}
	return nil
}

// create makes the container unless that is left to start.
func (t *task) create() error {
	if err := t.prepare(); err != nil {
		return err
	}
	if !t.options.Deferred {
		if err := t.launch(append([]string{"create"}, t.createArgs...), nil); err != nil {
			err = errors.Join(err, t.cleanUp())
			t.log.close()
			return err
		}
		t.init.began(time.Time{}) // it has not: the runtime's own code is what runs
	}
	t.enter(created)
	t.watch()
	return nil
}

// start starts what create has made, or all at once.
func (t *task) start() error {
	if err := t.claim(created, starting); err != nil {
		return err
	}
	var err error
	if t.options.Deferred {
		if err = t.launch(t.begin()); err != nil {
			err = errors.Join(err, t.cleanUp())
			t.publish(exitStatus{code: startFailed, at: time.Now()}, false)
			return err
		}
	} else {
		t.init.began(time.Now())
		if err = t.runtime.control(&runtimeCall{options: t.options, args: []string{"start", t.id}}); err != nil {
			t.moveIf(starting, created)
			return err
		}
	}
	t.moveIf(starting, running) // it may have stopped already
	if t.options.Deferred {
		t.watch()
	}
	return nil
}

// launch runs the runtime's command and finds out about the new init.
func (t *task) launch(command, env []string) error {
	streams, err := t.newStdio()
	if err != nil {
		return err
	}
	pidFile := filepath.Join(t.bundle, shimapi.InitPIDName)
	args := append(command, "--bundle", t.bundle, "--pid-file", pidFile)
	call := &runtimeCall{options: t.options, stdio: streams, env: env}
	if streams.tty != nil {
		args = append(args, "--console-socket", streams.tty.address(runtimeExtraFD))
		call.extra = streams.tty.dir
	}
	call.args = append(args, t.id)
	if err := t.init.launch(t.runtime, call, pidFile, t.wire); err != nil {
		return err
	}
	t.recordInit()
	return nil
}

func (t *task) newStdio() (*stdio, error) {
	if t.spec.terminal {
		return newTerminal(t.runtime.null, t.bundle, "console.sock")
	}
	stdin, stdout, stderr := t.options.Stdin, true, true
	if t.paths != nil {
		stdin, stdout, stderr = t.clients.wanted()
	}
	return newStdio(t.runtime.null, t.options, stdin, stdout, stderr, nil)
}

// wire connects the container's output with its log, or its streams with containerd's.
func (t *task) wire(s *stdio, terminal *os.File) {
	if t.paths != nil {
		t.init.join(s, terminal, &t.clients, false)
		return
	}
	if terminal != nil {
		t.init.mu.Lock()
		t.init.terminal = terminal
		t.init.mu.Unlock()
		if t.options.Stdin {
			t.input = newInput(terminal, nil)
		}
		t.outputs[0] = newBroadcast(newLogStream(t.log, "stdout"))
		t.init.addPumps(startPump(&pump{source: terminal, sink: t.outputs[0], tty: true}))
		return
	}
	t.init.mu.Lock()
	t.init.stdin = s.stdin
	t.init.mu.Unlock()
	if s.stdin != nil {
		var end func()
		if t.options.StdinOnce {
			end = t.init.closeStdin
		}
		t.input = newInput(s.stdin, end)
	}
	for i, name := range []string{"stdout", "stderr"} {
		t.outputs[i] = newBroadcast(newLogStream(t.log, name))
		t.init.addPumps(startPump(&pump{source: s.output[i], sink: t.outputs[i]}))
	}
}

// recordInit writes down what identifies the init, and remembers its cgroup while it can be asked for it.
func (t *task) recordInit() {
	p := t.init
	p.mu.Lock()
	fact := shimapi.InitFact{PID: p.child.PID, StartTime: p.startTime}
	p.mu.Unlock()
	if fact.StartTime != 0 { // otherwise it has ended already
		if err := shimapi.WriteInitFact(t.bundle, fact); err != nil {
			t.slog.Error("init fact is not on disk", "container", t.id, "err", err)
		}
	}
	group, err := findCgroup(t.spec.cgroupsPath, t.options.SystemdCgroup, fact.PID)
	if err != nil {
		t.slog.Error("container's cgroup is not known", "container", t.id, "err", err)
	}
	t.mu.Lock()
	t.cgroup = group
	t.mu.Unlock()
	t.oom.begin(t.id, group)
}

// watch reports the init's exit when it comes; a deferred container has none yet.
func (t *task) watch() {
	t.init.mu.Lock()
	child := t.init.child
	t.init.mu.Unlock()
	if child != nil {
		child.AfterExit(t.exited)
	}
}

// exited makes the exit of the init known: what survived it is killed, the log has its output, the fact is on
// disk, and only then anybody hears of it.
func (t *task) exited(exit reaper.Exit) {
	oom := t.reapCgroup()
	t.init.settle()
	if t.input != nil {
		t.input.close()
	}
	t.init.closeStdin()
	t.publish(exitStatus{pid: exit.PID, code: exit.Code(), signal: exit.Signal(), at: exit.At}, oom)
}

// reapCgroup kills the processes that outlive the init (without a PID namespace of the container's own the
// kernel does not) and tells whether the kernel has killed for memory.
func (t *task) reapCgroup() (oomKilled bool) {
	group := t.group()
	kills, err := t.oom.end(t.id, group)
	if err != nil {
		t.slog.Warn("OOM kills are not known", "container", t.id, "err", err)
	}
	if err := group.killAll(settleLimit); err != nil {
		t.slog.Error("processes outlive their container", "container", t.id, "err", err)
	}
	return kills > 0
}

// cleanUp takes away what a failed start has left. A runtime that was killed has forgotten its cgroups.
func (t *task) cleanUp() error {
	t.init.settle() // what the runtime said goes into the log, too
	t.init.closeStreams()
	err := t.deleteContainer()
	group, findErr := findCgroup(t.spec.cgroupsPath, t.options.SystemdCgroup, 0)
	if findErr != nil || group.procs == "" {
		return errors.Join(err, findErr)
	}
	return errors.Join(err, group.killAll(killLimit), removeCgroups(specCgroup(t.spec.cgroupsPath, t.options.SystemdCgroup)))
}

func (t *task) publish(exit exitStatus, oomKilled bool) {
	t.init.mu.Lock()
	startedAt := t.init.startedAt
	t.init.mu.Unlock()
	if startedAt.After(exit.at) { // it ended before the runtime came back
		startedAt = exit.at
	}
	err := shimapi.WriteExitFact(t.bundle, shimapi.ExitFact{
		ID: t.id, PID: exit.pid, ExitCode: exit.code, Signal: exit.signal, ExitedAt: exit.at, StartedAt: startedAt,
		OOMKilled: oomKilled, LogBytesDropped: t.log.dropped.Load(),
	})
	if err != nil {
		t.slog.Error("exit fact is not on disk", "container", t.id, "code", exit.code, "err", err)
	}
	t.mu.Lock()
	t.oomKilled, t.phase = oomKilled, stopped
	t.mu.Unlock()
	t.init.finish(exit)
}

// delete removes the container. A task that cannot be deleted now stays as it is.
func (t *task) delete() (exitStatus, error) {
	before, err := t.claimDelete()
	if err != nil {
		return exitStatus{}, err
	}
	if t.init.ended() {
		if err := t.deleteContainer(); err != nil {
			t.enter(before)
			return exitStatus{}, err
		}
	}
	for _, e := range t.allExecs() {
		e.process.closeStreams()
		e.release()
	}
	t.init.closeStreams()
	t.log.close()
	if before == created { // whoever waits for it waits in vain
		t.init.finish(exitStatus{})
	}
	return t.init.status(), nil
}

// claimDelete allows to delete what has no process: stopped, or deferred and never started.
func (t *task) claimDelete() (phase, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.phase
	if before != stopped && !(before == created && t.options.Deferred) {
		return before, t.wrongPhaseLocked("delete")
	}
	t.phase = deleting
	return before, nil
}

// deleteContainer makes the runtime forget the container, whether it still knows it or not. Force comes second: with it runc
// always waits 100 ms, and it is only needed for what a failed start has left, or to excuse a container that is gone.
func (t *task) deleteContainer() error {
	err := t.runtime.control(&runtimeCall{options: t.options, args: []string{"delete", t.id}})
	if err != nil {
		err = t.runtime.control(&runtimeCall{options: t.options, args: []string{"delete", "--force", t.id}})
	}
	if err == nil && !t.options.Native {
		return t.emptyCgroup() // a foreign shim may have been taken away without having done that
	}
	if err == nil || !t.options.Native {
		return err
	}
	if own := t.forget(); own != nil {
		return errors.Join(err, own)
	}
	t.slog.Error("the OCI runtime does not delete the container; it was taken away without it", "container", t.id, "err", err)
	return nil
}

// kill signals the init, or every process of the container.
func (t *task) kill(sig syscall.Signal, all bool) error {
	if t.init.ended() {
		return rpc.Errorf(rpc.NotFound, "container %s has already finished", t.id)
	}
	if !t.options.Native {
		return t.killByRuntime(sig, all)
	}
	if err := t.thawFor(sig); err != nil {
		return err
	}
	if !all {
		return t.init.signal(sig)
	}
	count, err := t.group().signalAll(sig)
	if err == nil && count == 0 {
		return t.init.signal(sig)
	}
	return err
}

func (t *task) killByRuntime(sig syscall.Signal, all bool) error {
	args := []string{"kill"}
	if all {
		args = append(args, "--all")
	}
	args = append(args, t.id, fmt.Sprint(int(sig)))
	return t.runtime.control(&runtimeCall{options: t.options, args: args})
}

// thawFor resumes a paused container that is to be killed: a frozen process does not die on cgroup v1.
func (t *task) thawFor(sig syscall.Signal) error {
	t.mu.Lock()
	paused := t.paused
	t.mu.Unlock()
	if !paused || sig != syscall.SIGKILL {
		return nil
	}
	return t.freeze("resume", false)
}

// freeze pauses or resumes the container. To resume one that is not paused is success; one that could not be paused as a whole goes on.
func (t *task) freeze(command string, paused bool) error {
	if err := t.require(running, command); err != nil {
		return err
	}
	t.mu.Lock()
	was := t.paused
	t.mu.Unlock()
	if !paused && !was {
		return nil
	}
	if err := t.runtime.control(&runtimeCall{options: t.options, args: []string{command, t.id}}); err != nil {
		if paused && !was {
			_ = t.runtime.control(&runtimeCall{options: t.options, args: []string{"resume", t.id}}) // it mostly says that there is nothing to resume
		}
		return err
	}
	t.mu.Lock()
	t.paused = paused
	t.mu.Unlock()
	return nil
}

// update changes the container's resources; the JSON goes to the runtime as it is.
func (t *task) update(resources *os.File) error {
	t.mu.Lock()
	phase := t.phase
	t.mu.Unlock()
	if phase != running && !(phase == created && !t.options.Deferred) {
		return t.require(running, "update")
	}
	return t.runtime.control(&runtimeCall{options: t.options, args: []string{"update", "--resources", "-", t.id}, stdin: resources})
}

func (t *task) group() cgroup {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cgroup
}

func (t *task) enter(to phase) {
	t.mu.Lock()
	t.phase = to
	t.mu.Unlock()
}

// moveIf goes on unless an exit was faster.
func (t *task) moveIf(from, to phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase == from {
		t.phase = to
	}
}

// claim goes from one phase to the next, alone.
func (t *task) claim(from, to phase) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase != from {
		return t.wrongPhaseLocked("start")
	}
	t.phase = to
	return nil
}

func (t *task) require(want phase, operation string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase != want {
		return t.wrongPhaseLocked(operation)
	}
	return nil
}

// wrongPhaseLocked says why not. Preconditions: t.mu is held.
func (t *task) wrongPhaseLocked(operation string) error {
	return rpc.Errorf(rpc.FailedPrecondition, "%s container %s: it is %s", operation, t.id, t.phase)
}
