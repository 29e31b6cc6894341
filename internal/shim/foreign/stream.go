// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/shim/wire"
)

// outputQuiet is for how long nothing may come from the FIFOs of a process that has ended until they are given up: what it has put into the
// background keeps them open, and the shim may still be carrying what it wrote last.
const outputQuiet = 500 * time.Millisecond

// maxHeld is more than pipes, FIFOs and a shim between them hold: what comes beyond it after the end was written by something else.
const maxHeld = 1 << 20

// maxRounds bounds the wait for output that comes now and then, in units of outputQuiet.
const maxRounds = 4

// streams are the FIFOs between our standard streams, or a terminal, and a foreign shim.
type streams struct {
	// paths for the shim; empty: the process has no such stream.
	paths [3]string
	// holders keep the output FIFOs from ending before the shim has opened them.
	holders []*os.File
	// input is the stdin FIFO, nil without one; from is what it is fed from.
	input, from *os.File
	outputs     []*outlet
}

// connect makes the FIFOs and begins to copy the outputs. A stdin that is /dev/null is none.
func (p *standIn) connect() (_ *streams, err error) {
	s := &streams{from: os.Stdin}
	to := []*os.File{nil, os.Stdout, os.Stderr}
	if p.terminal != nil {
		s.from, to = p.terminal.slave, []*os.File{nil, p.terminal.slave}
	}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	for i, name := range []string{"stdin", "stdout", "stderr"}[:len(to)] {
		if i == 0 && isNull(s.from) {
			continue
		}
		path := filepath.Join(p.fifos, name)
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			return nil, fmt.Errorf("make FIFO: %w", err)
		}
		s.paths[i] = path
		if i > 0 {
			err = s.copyOutput(path, to[i])
		} else {
			// Both ways, so that opening does not wait for the shim to read; what is fed before it does is kept.
			s.input, err = os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *streams) copyOutput(path string, to *os.File) error {
	// Non-blocking, so that Go's poller waits for it and not a thread.
	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	holder, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		reader.Close()
		return err
	}
	s.holders = append(s.holders, holder)
	o := &outlet{from: reader, to: to, ended: make(chan struct{})}
	s.outputs = append(s.outputs, o)
	go o.copy()
	return nil
}

// started lets the output FIFOs end with the shim's own ends, and begins to feed the input: before, the shim might find it at its end already.
func (s *streams) started(p *standIn) {
	s.holders = closeAll(s.holders)
	if s.input != nil {
		go p.feed(s.input, s.from)
	}
}

// abandon ends the streams of what did not start.
func (s *streams) abandon() {
	s.holders = closeAll(s.holders)
	if s.input != nil {
		s.input.Close()
	}
}

func closeAll(files []*os.File) []*os.File {
	for _, f := range files {
		f.Close()
	}
	return nil
}

// feed copies to the process, and tells the shim of the end, which a terminal's input has not.
func (p *standIn) feed(fifo, from *os.File) {
	_, _ = io.Copy(fifo, from) // the process has ended when it does not take it
	fifo.Close()
	if p.terminal != nil {
		return
	}
	other, err := dial(p.state.Address, p.state.Version)
	if err != nil {
		return // Wait tells
	}
	defer other.close()
	_ = other.call(callLimit, "CloseIO", &wire.CloseIORequest{ID: p.id, ExecID: p.execID, Stdin: true}, &wire.Empty{}) // it may have ended
}

// outlet is the copying of one output.
type outlet struct {
	from, to *os.File
	moved    atomic.Int64 // in bytes read
	writing  atomic.Bool
	ended    chan struct{}
}

func (o *outlet) copy() {
	defer close(o.ended)
	defer o.from.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := o.from.Read(buffer)
		if n > 0 {
			o.writing.Store(true)
			o.moved.Add(int64(n))
			if _, err := o.to.Write(buffer[:n]); err != nil {
				return // our shim has gone when it does not take it
			}
			o.writing.Store(false)
		}
		if err != nil {
			return
		}
	}
}

// settle waits until all is passed on that a process wrote before it ended: until the outputs end, nothing has come for a while, or as much has
// come, or so much time has passed, that it must be something else's. Who takes it may be slow. It tells whether they have ended.
func settle(outputs []*outlet) (ended bool) {
	total := func() (n int64, writing bool) {
		for _, o := range outputs {
			n += o.moved.Load()
			writing = writing || o.writing.Load()
		}
		return n, writing
	}
	last, _ := total()
	limit := last + maxHeld
	for rounds := 0; rounds < maxRounds; {
		if endWithin(outputs, outputQuiet) {
			return true
		}
		moved, writing := total()
		if moved > limit || moved == last && !writing {
			return false
		}
		if last = moved; !writing {
			rounds++
		}
	}
	return false
}

// endWithin tells whether all outputs end within a time.
func endWithin(outputs []*outlet, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, o := range outputs {
		select {
		case <-o.ended:
		case <-timer.C:
			return false
		}
	}
	return true
}

func isNull(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return true
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 1<<8|3
}
