// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"bytes"
	"fmt"
	"strconv"
)

// These parse the kernel's files without allocating: a list of hundreds of containers reads a thousand of them.

// number parses a file of one number; "max" and v1's largest page count are Unlimited.
func number(data []byte) (uint64, error) {
	data = bytes.TrimSpace(data)
	if string(data) == "max" || string(data) == "-1" {
		return Unlimited, nil
	}
	n, ok := digits(data)
	if !ok {
		return 0, fmt.Errorf("%.40q is not a number", data)
	}
	if n >= 1<<62 { // v1 rounds "unlimited" down to a page
		return Unlimited, nil
	}
	return n, nil
}

func digits(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		next := n*10 + uint64(c-'0')
		if n > (1<<64-1)/10 || next < n*10 {
			return 0, false
		}
		n = next
	}
	return n, true
}

// pairs calls f for each "key value" line; lines of another form are passed over, as later kernels may add some.
func pairs(data []byte, f func(key []byte, value uint64)) {
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		key, value, ok := bytes.Cut(line, []byte{' '})
		if !ok {
			continue
		}
		if n, ok := digits(value); ok {
			f(key, n)
		}
	}
}

// pressure parses a v2 pressure file; nil if it has another form.
func pressure(data []byte) *PSI {
	var p PSI
	seen := false
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		to := &p.Some
		switch string(fields[0]) {
		case "some":
		case "full":
			to = &p.Full
		default:
			continue
		}
		for _, field := range fields[1:] {
			key, value, _ := bytes.Cut(field, []byte{'='})
			to.set(string(key), value)
		}
		seen = true
	}
	if !seen {
		return nil
	}
	return &p
}

func (p *Pressure) set(key string, value []byte) {
	if key == "total" {
		if n, ok := digits(value); ok {
			p.Total = n * 1000 // the kernel counts microseconds
		}
		return
	}
	avg, err := strconv.ParseFloat(string(value), 64)
	if err != nil {
		return
	}
	switch key {
	case "avg10":
		p.Avg10 = avg
	case "avg60":
		p.Avg60 = avg
	case "avg300":
		p.Avg300 = avg
	}
}

// device parses "major:minor".
func device(b []byte) (major, minor uint64, ok bool) {
	a, b, ok := bytes.Cut(b, []byte{':'})
	if !ok {
		return 0, 0, false
	}
	if major, ok = digits(a); !ok {
		return 0, 0, false
	}
	minor, ok = digits(b)
	return major, minor, ok
}
