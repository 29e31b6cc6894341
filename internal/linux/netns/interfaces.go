// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

// Interface are a network interface's counters since it was made.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// maxNetDev bounds what is read of /proc/net/dev: a line has some 130 bytes, a pod few interfaces.
const maxNetDev = 1 << 20

// Interfaces reads the counters of all interfaces in the network namespace pinned at path, lo among them. ErrNotPinned.
func Interfaces(path string) (all []Interface, err error) {
	err = Do(path, func() error {
		all, err = ownInterfaces()
		return err
	})
	return all, err
}

// ownInterfaces reads those of the namespace that the calling thread is in.
func ownInterfaces() ([]Interface, error) {
	f, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		return nil, fmt.Errorf("read network counters: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxNetDev))
	if err != nil {
		return nil, fmt.Errorf("read network counters: %w", err)
	}
	return parseInterfaces(data)
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
