// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/berth-run/berth/internal/shim/wire"
)

// streams are the FIFOs between our standard streams and a foreign shim.
type streams struct {
	// paths for the shim; empty: the process has no such stream.
	paths [3]string
	// holders keep the output FIFOs from ending before the shim has opened them.
	holders []*os.File
}

// connect makes the FIFOs and begins to copy. A stdin that is /dev/null is none.
func (p *standIn) connect() (*streams, error) {
	s := &streams{}
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		if i == 0 && isNull(os.Stdin) {
			continue
		}
		path := filepath.Join(p.fifos, name)
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			return nil, fmt.Errorf("make FIFO: %w", err)
		}
		s.paths[i] = path
		if i == 0 {
			continue
		}
		// Non-blocking, so that Go's poller waits for it and not a thread.
		reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		holder, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		s.holders = append(s.holders, holder)
		done := make(chan struct{})
		p.outputs = append(p.outputs, done)
		go func(to *os.File) {
			defer close(done)
			defer reader.Close()
			_, _ = io.Copy(to, reader) // our shim has gone when it does not take it
		}([]*os.File{nil, os.Stdout, os.Stderr}[i])
	}
	if s.paths[0] != "" {
		// Both ways, so that opening does not wait for the shim to read.
		fifo, err := os.OpenFile(s.paths[0], os.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		go p.feed(fifo)
	}
	return s, nil
}

// feed copies our standard input to the process, and tells the shim of its end.
func (p *standIn) feed(fifo *os.File) {
	_, _ = io.Copy(fifo, os.Stdin) // the process has ended when it does not take it
	fifo.Close()
	other, err := dial(p.state.Address, p.state.Version)
	if err != nil {
		return // Wait tells
	}
	defer other.close()
	_ = other.call(callLimit, "CloseIO", &wire.CloseIORequest{ID: p.id, ExecID: p.execID, Stdin: true}, &wire.Empty{}) // it may have ended
}

// started lets the FIFOs end with the shim's own ends.
func (s *streams) started() {
	for _, h := range s.holders {
		h.Close()
	}
}

func isNull(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return true
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 1<<8|3
}
