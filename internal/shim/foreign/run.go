// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// outputLimit is how long the end of a container's output is waited for once it has ended.
	outputLimit = 2 * time.Second
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
	execID  string
	client  *client
	state   state
	fifos   string
	outputs []chan struct{}
}

func (p *standIn) begin() error {
	if p.options["--console-socket"] != "" {
		return errors.New("terminals of foreign shims are not supported by this release")
	}
	if p.verb == "exec" {
		return p.beginExec()
	}
	return p.beginContainer()
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
	streams, err := p.connect()
	if err != nil {
		return err
	}
	request := &wire.CreateTaskRequest{ID: p.id, Bundle: p.bundle(), Stdin: streams.paths[0], Stdout: streams.paths[1], Stderr: streams.paths[2], Options: p.runtimeOptions()}
	var pid wire.PIDResponse
	if err := p.client.call(startLimit, "Create", request, &pid); err != nil {
		return err
	}
	if err := p.learn(pid.PID); err != nil {
		return err
	}
	if err := p.client.call(startLimit, "Start", &wire.ProcessRequest{ID: p.id}, &pid); err != nil {
		return err
	}
	streams.started()
	return nil
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
	process, err := readLimited(p.options["--process"], maxProcess)
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
	streams, err := p.connect()
	if err != nil {
		return errors.Join(err, os.RemoveAll(p.fifos))
	}
	request := &wire.ExecProcessRequest{ID: p.id, ExecID: p.execID, Stdin: streams.paths[0], Stdout: streams.paths[1], Stderr: streams.paths[2],
		Spec: wire.Any{TypeURL: shimapi.ProcessTypeURL, Value: process}}
	err = p.client.call(callLimit, "Exec", request, &wire.Empty{})
	if err == nil {
		err = p.client.call(startLimit, "Start", &wire.ProcessRequest{ID: p.id, ExecID: p.execID}, &wire.PIDResponse{})
		if err != nil {
			p.forget()
		}
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(p.fifos))
	}
	streams.started()
	p.killOnTerm()
	return nil
}

// killOnTerm passes a SIGTERM to this process on as the end of the exec, which nobody else could reach.
func (p *standIn) killOnTerm() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		for range term {
			// A connection of its own: the other one waits.
			if other, err := dial(p.state.Address, p.state.Version); err == nil {
				_ = other.call(callLimit, "Kill", &wire.KillRequest{ID: p.id, ExecID: p.execID, Signal: uint32(syscall.SIGKILL), All: true}, &wire.Empty{}) // our shim kills this process next
				other.close()
			}
		}
	}()
}

// forget frees what the shim keeps of an exec.
func (p *standIn) forget() {
	_ = p.client.call(callLimit, "Delete", &wire.ProcessRequest{ID: p.id, ExecID: p.execID}, &wire.DeleteResponse{}) // it goes with its container at the latest
}

// end waits for the end and returns the exit code.
func (p *standIn) end() int {
	var exit wire.WaitResponse
	err := p.client.call(0, "Wait", &wire.ProcessRequest{ID: p.id, ExecID: p.execID}, &exit)
	limit := time.After(outputLimit)
	for _, done := range p.outputs {
		select {
		case <-done:
		case <-limit:
			limit = time.After(0)
		}
	}
	if p.execID != "" {
		if err == nil {
			p.forget()
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

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, err
}
