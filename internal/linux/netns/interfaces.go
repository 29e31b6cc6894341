// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/kernfile"
)

// Interface are a network interface's counters since it was made.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// maxNetDev bounds what is read of /proc/net/dev: a line has some 130 bytes, a pod few interfaces.
const maxNetDev = 1 << 20

// Counters reads the counters of all interfaces of one network namespace, as often as one likes. The file that it keeps open shows that namespace from
// wherever it is read, so that only the first reading enters it; and keeps the namespace from ending, so close it before that is to go.
// Its methods may be called from any goroutine.
type Counters struct {
	pin string

	mu    sync.Mutex // held while the file is read: the kernel answers at once
	fd    int        // /proc/net/dev as seen inside, closed if not open
	open  bool
	ended bool
	buf   []byte
}

// CountersOf gives access to the namespace pinned at path. It opens nothing yet. Close it, or end it with Drop.
func CountersOf(path string) *Counters { return &Counters{pin: path} }

// Close lets go of the namespace, until the next reading. It is idempotent.
func (c *Counters) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.close()
}

// Drop is Close for good: who reads afterwards, since it began before, keeps nothing open.
func (c *Counters) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.close()
}

// Preconditions: c.mu is held.
func (c *Counters) close() {
	if c.open {
		unix.Close(c.fd)
	}
	c.open, c.buf = false, nil
}

// Read reads the counters, lo's among them. ErrNotPinned, fs.ErrNotExist: there is no namespace at the path.
func (c *Counters) Read() ([]Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open {
		if err := Do(c.pin, c.enter); err != nil {
			return nil, err
		}
	}
	data, err := c.read()
	if err != nil || c.ended {
		c.close()
	}
	if err != nil {
		return nil, fmt.Errorf("read network counters of %s: %w", c.pin, err)
	}
	return parseInterfaces(data)
}

// enter opens the file. It runs inside the namespace.
func (c *Counters) enter() (err error) {
	if c.fd, err = kernfile.Open("/proc/thread-self/net/dev", 0); err != nil {
		return fmt.Errorf("open network counters: %w", err)
	}
	c.open = true
	return nil
}

// read reads from the start to the end. The kernel gives whole lines, as many as fit.
func (c *Counters) read() ([]byte, error) {
	if c.buf == nil {
		c.buf = make([]byte, 1024)
	}
	for at := 0; ; {
		n, err := unix.Pread(c.fd, c.buf[at:], int64(at))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n == 0:
			return c.buf[:at], nil
		case at+n > maxNetDev:
			return nil, fmt.Errorf("more than %d bytes", maxNetDev)
		default:
			if at += n; len(c.buf)-at < 512 { // longer than any line
				c.buf = append(c.buf, make([]byte, len(c.buf))...)
			}
		}
	}
}

// The columns of /proc/net/dev after the name: bytes, packets, errs, drop, fifo, frame, compressed, multicast, then the same sent.
const (
	columns  = 16
	sentFrom = 8
)

func parseInterfaces(data []byte) ([]Interface, error) {
	var all []Interface
	for line := range bytes.Lines(data) {
		// An interface's name cannot hold a space or a slash but may hold a colon (an alias): the last one ends it.
		i := bytes.LastIndexByte(line, ':')
		if i < 0 {
			continue // the two lines of headings
		}
		fields := bytes.Fields(line[i+1:])
		if len(fields) < columns {
			return nil, fmt.Errorf("read network counters: line %.200q: %w", line, errors.ErrUnsupported)
		}
		var n [columns]uint64
		for k := range n {
			v, err := strconv.ParseUint(string(fields[k]), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("read network counters: line %.200q: %w", line, err)
			}
			n[k] = v
		}
		all = append(all, Interface{Name: string(bytes.TrimSpace(line[:i])), RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[sentFrom], TxPackets: n[sentFrom+1], TxErrors: n[sentFrom+2], TxDropped: n[sentFrom+3]})
	}
	return all, nil
}
