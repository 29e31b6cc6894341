// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/fsys"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// lostCode is the exit code of what was lost with its shim.
	lostCode = 255
	// maxProcess bounds the OCI process of an exec.
	maxProcess = 4 << 20
)

// stand is the process that stands for a container or an exec: it starts it, reports, and ends as it ends.
func (c *command) stand() (int, error) {
	syscall.CloseOnExec(reportFD) // the foreign shim outlives this process
	report := os.NewFile(reportFD, "report")
	// What our shim kills, it kills by a command; a signal to this process would only lose the container.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	p := &standIn{command: c}
	if err := tell(report, p.begin()); err != nil {
		return 1, err
	}
	for _, f := range c.inherited {
		if f != nil {
			f.Close()
		}
	}
	return p.end(), nil
}

// tell reports how the start went, and returns what went wrong.
func tell(report *os.File, err error) error {
	defer report.Close()
	text := started
	if err != nil {
		text = err.Error()
		text = text[:min(len(text), maxReport)]
	}
	_, reportErr := report.WriteString(text)
	return errors.Join(err, reportErr)
}

// standIn is a started container or exec.
type standIn struct {
	*command
	execID   string
	client   *client
	state    state
	fifos    string
	terminal *terminal // nil: the process has none
	streams  *streams
}

func (p *standIn) begin() (err error) {
	if socket := p.options["--console-socket"]; socket != "" {
		if p.terminal, err = openTerminal(socket); err != nil {
			return err
		}
	}
	if p.verb == "exec" {
		err = p.beginExec()
	} else {
		err = p.beginContainer()
	}
	if err != nil {
		return err
	}
	p.streams.started(p)
	if p.terminal != nil {
		go p.follow()
	}
	return nil
}

func (p *standIn) beginContainer() (err error) {
	if exists(p.dir()) {
		return fmt.Errorf("container %s exists", p.id)
	}
	if err := os.MkdirAll(p.dir(), 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.delete())
		}
	}()
	bundle := p.options["--bundle"]
	if err := p.save(state{Bundle: bundle}); err != nil { // from now on delete knows what to clear up
		return err
	}
	if p.state, err = p.start(bundle); err != nil {
		return err
	}
	if err := p.save(p.state); err != nil {
		return err
	}
	if p.client, err = dial(p.state.Address, p.state.Version); err != nil {
		return err
	}
	p.fifos = p.dir()
	if p.streams, err = p.connect(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.streams.abandon()
		}
	}()
	request := &wire.CreateTaskRequest{ID: p.id, Bundle: p.bundle(), Terminal: p.terminal != nil,
		Stdin: p.streams.paths[0], Stdout: p.streams.paths[1], Stderr: p.streams.paths[2], Options: p.runtimeOptions()}
	var pid wire.PIDResponse
	if err := p.client.call(startLimit, "Create", request, &pid); err != nil {
		return err
	}
	if err := p.learn(pid.PID); err != nil {
		return err
	}
	return p.client.call(startLimit, "Start", &wire.ProcessRequest{ID: p.id}, &pid)
}

// learn notes who the shim and the container's init are.
func (p *standIn) learn(pid uint32) error {
	var who wire.ConnectResponse
	if err := p.client.call(callLimit, "Connect", &wire.ProcessRequest{ID: p.id}, &who); err != nil {
		return err
	}
	if pid == 0 {
		pid = who.TaskPID
	}
	if stat, err := proc.ReadStat(int(who.ShimPID)); err == nil && who.ShimPID > 1 {
		p.state.ShimPID, p.state.ShimStart = int(who.ShimPID), stat.StartTime
	}
	if err := p.save(p.state); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dir(), shimapi.TaskPIDName), []byte(strconv.Itoa(int(pid))), 0o600)
}

func (p *standIn) beginExec() error {
	process, err := fsys.ReadFile(p.options["--process"], maxProcess)
	if err != nil {
		return err
	}
	if p.state, err = p.load(); err != nil {
		return err
	}
	if p.client, err = dial(p.state.Address, p.state.Version); err != nil {
		return err
	}
	var random [8]byte
	rand.Read(random[:]) // never fails, since Go 1.24
	p.execID = hex.EncodeToString(random[:])
	p.fifos = filepath.Join(p.dir(), p.execID)
	if err := os.Mkdir(p.fifos, 0o700); err != nil {
		return err
	}
	if p.streams, err = p.connect(); err != nil {
		return errors.Join(err, os.RemoveAll(p.fifos))
	}
	request := &wire.ExecProcessRequest{ID: p.id, ExecID: p.execID, Terminal: p.terminal != nil,
		Stdin: p.streams.paths[0], Stdout: p.streams.paths[1], Stderr: p.streams.paths[2], Spec: wire.Any{TypeURL: shimapi.ProcessTypeURL, Value: process}}
	err = p.client.call(callLimit, "Exec", request, &wire.Empty{})
	if err == nil {
		err = p.client.call(startLimit, "Start", &wire.ProcessRequest{ID: p.id, ExecID: p.execID}, &wire.PIDResponse{})
		if err != nil {
			p.forget(callLimit)
		}
	}
	if err != nil {
		p.streams.abandon()
		return errors.Join(err, os.RemoveAll(p.fifos))
	}
	p.passSignals()
	return nil
}

// passSignals passes a SIGHUP to this process on to the exec, which nobody else could reach, and a SIGTERM as its end.
func (p *standIn) passSignals() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		for s := range signals {
			pass := syscall.SIGHUP
			if s == syscall.SIGTERM {
				pass = syscall.SIGKILL
			}
			// A connection of its own: the other one waits.
			if other, err := dial(p.state.Address, p.state.Version); err == nil {
				_ = other.call(callLimit, "Kill", &wire.KillRequest{ID: p.id, ExecID: p.execID, Signal: uint32(pass), All: true}, &wire.Empty{}) // it may have ended; our shim kills this process next
				other.close()
			}
		}
	}()
}

// forgetLimit is for a Delete that waits for the outputs which something in the background holds. The shim ends its wait then.
const forgetLimit = 200 * time.Millisecond

// forget frees what the shim keeps of an exec.
func (p *standIn) forget(limit time.Duration) {
	_ = p.client.call(limit, "Delete", &wire.ProcessRequest{ID: p.id, ExecID: p.execID}, &wire.DeleteResponse{}) // it goes with its container at the latest
}

// end waits for the end and returns the exit code.
func (p *standIn) end() int {
	var exit wire.WaitResponse
	err := p.client.call(0, "Wait", &wire.ProcessRequest{ID: p.id, ExecID: p.execID}, &exit)
	ended := settle(p.streams.outputs)
	if p.execID != "" {
		if err == nil {
			limit := callLimit
			if !ended {
				limit = forgetLimit
			}
			p.forget(limit)
		}
		if rmErr := os.RemoveAll(p.fifos); rmErr != nil {
			fmt.Fprintln(os.Stderr, rmErr)
		}
	}
	if err != nil {
		return lostCode
	}
	return int(exit.ExitStatus & 0xff)
}
