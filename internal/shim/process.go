// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/pidfd"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/linux/reaper"
	"github.com/berth-run/berth/internal/shim/rpc"
)

// process is a container's init or an exec: what the OCI runtime started and this shim reaps.
type process struct {
	exited chan struct{} // closed when the exit is known, and for an init on disk

	mu        sync.Mutex
	child     *reaper.Process // nil before the start
	launcher  *reaper.Process // the runtime, while it starts the process
	startTime uint64          // of child; 0 if it ended too fast to look
	startedAt time.Time
	terminal  *os.File // master, nil without one
	stdin     *os.File // our end; nil without one
	pumps     []*pump
	exit      exitStatus

	news news // for containerd
}

// exitStatus is how a process ended.
type exitStatus struct {
	pid    int
	code   uint32
	signal int
	at     time.Time
}

func newProcess() *process {
	return &process{exited: make(chan struct{})}
}

// launch runs the OCI runtime's command that starts p and takes over the child that the runtime leaves behind,
// named by pidFile. It calls wire to connect the streams: at once with pipes, since the runtime may have much
// to say, and with the terminal when there is one. A failure leaves the pumps to the caller.
func (p *process) launch(o *ociRuntime, call *runtimeCall, pidFile string, wire func(*stdio, *os.File)) error {
	defer call.stdio.started()
	expect := o.reaper.Expect()
	defer expect.Close()
	if err := o.start(call); err != nil {
		call.stdio.close()
		return err
	}
	call.stdio.started()
	p.setLauncher(call.process)
	if call.stdio.tty == nil {
		wire(call.stdio, nil)
	}
	err := call.wait()
	p.setLauncher(nil)
	var child *reaper.Process
	if err == nil {
		child, err = adoptFrom(expect, pidFile)
	}
	var terminal *os.File
	if tty := call.stdio.tty; tty != nil {
		if err == nil {
			terminal, err = tty.receive()
		}
		tty.close()
	}
	if terminal != nil {
		wire(call.stdio, terminal)
	}
	if err != nil {
		return errors.Join(err, endUnowned(child))
	}
	p.adopt(child)
	return nil
}

func adoptFrom(expect *reaper.Expectation, pidFile string) (*reaper.Process, error) {
	pid, err := readPID(pidFile)
	if err != nil {
		return nil, err
	}
	return expect.Adopt(pid)
}

// endUnowned ends a process that was started and cannot be used: nobody would know of it.
func endUnowned(child *reaper.Process) error {
	if child == nil {
		return nil
	}
	if err := child.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, pidfd.ErrGone) {
		return err
	}
	select {
	case <-child.Done():
		return nil
	case <-time.After(killLimit):
		return fmt.Errorf("process %d does not end", child.PID)
	}
}

func (p *process) setLauncher(launcher *reaper.Process) {
	p.mu.Lock()
	p.launcher = launcher
	p.mu.Unlock()
}

func (p *process) adopt(child *reaper.Process) {
	stat, err := proc.ReadStat(child.PID)
	now := time.Now()
	select {
	case <-child.Done(): // the pid may be another's by now
		err = os.ErrProcessDone
		now = child.Exit().At
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.child, p.startedAt = child, now
	if err == nil {
		p.startTime = stat.StartTime
	}
}

// began notes when the process's own program was started.
func (p *process) began(at time.Time) {
	p.mu.Lock()
	p.startedAt = at
	p.mu.Unlock()
}

func readPID(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("read pid file %s: %q is no pid", file, data)
	}
	return pid, nil
}

// pid is 0 before the start.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child == nil {
		return p.exit.pid
	}
	return p.child.PID
}

// signal sends sig to the process, or ends the runtime that is about to start it if sig is SIGKILL.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	child, launcher := p.child, p.launcher
	p.mu.Unlock()
	switch {
	case child != nil:
	case launcher != nil && sig == syscall.SIGKILL:
		child = launcher
	default:
		return rpc.Errorf(rpc.FailedPrecondition, "process is not started")
	}
	err := child.Signal(sig)
	if errors.Is(err, pidfd.ErrGone) {
		return rpc.Errorf(rpc.NotFound, "process has already finished")
	}
	return err
}

func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// ending tells that the process has ended, if perhaps nobody has heard of it yet, or is about to: its PID namespace takes no new
// processes then, and those in it are killed before it is gone itself.
func (p *process) ending() bool {
	p.mu.Lock()
	child := p.child
	p.mu.Unlock()
	if child == nil {
		return p.ended()
	}
	stat, err := proc.ReadStat(child.PID)
	select {
	case <-child.Done(): // the pid may be another's by now
		return true
	default:
		return err != nil || stat.Ending || stat.Ended()
	}
}

// finish publishes the exit.
func (p *process) finish(exit exitStatus) {
	p.mu.Lock()
	p.exit = exit
	p.mu.Unlock()
	close(p.exited)
}

func (p *process) status() exitStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// addPumps registers what copies the process's streams.
func (p *process) addPumps(pumps ...*pump) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pumps = append(p.pumps, pumps...)
}

func (p *process) allPumps() []*pump {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pumps
}

// settle waits until what the process wrote before it ended is where it belongs; not for ever, and not for
// what other holders of its streams will write.
func (p *process) settle() {
	limit, cancel := context.WithTimeout(context.Background(), settleLimit)
	defer cancel()
	pumps := p.allPumps()
	for _, pump := range pumps {
		pump.drain()
	}
	for _, pump := range pumps {
		pump.settled(limit.Done())
	}
}

// flushLimit is how long a delete waits for a client that has not read all output yet; as long as containerd's own shim.
const flushLimit = 2 * time.Second

// flush waits until the clients have all that the process, which has ended, has written; not for ever.
func (p *process) flush() {
	limit, cancel := context.WithTimeout(context.Background(), flushLimit)
	defer cancel()
	for _, pump := range p.allPumps() {
		if _, ok := pump.sink.(*stdinSink); !ok {
			pump.settled(limit.Done())
		}
	}
}

// closeStdin is an end of file for the process. Again, or without a stdin, it does nothing.
func (p *process) closeStdin() {
	p.mu.Lock()
	stdin := p.stdin
	p.stdin = nil
	p.mu.Unlock()
	if stdin != nil {
		stdin.Close()
	}
}

// closeStreams ends all copying and waits for it.
func (p *process) closeStreams() {
	pumps := p.allPumps()
	for _, pump := range pumps {
		pump.stop()
	}
	p.closeStdin()
	for _, pump := range pumps {
		<-pump.ended
	}
	p.mu.Lock()
	p.pumps, p.terminal = nil, nil
	p.mu.Unlock()
}
