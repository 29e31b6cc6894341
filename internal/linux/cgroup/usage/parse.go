// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"bytes"
	"fmt"
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
	return limit(n).Value, nil
}

// limit knows v1's way to say that there is none: the largest number, rounded down to a page.
func limit(n uint64) Counter {
	if n >= 1<<62 {
		return known(Unlimited)
	}
	return known(n)
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
		kind, fields, ok := bytes.Cut(line, []byte{' '})
		if !ok {
			continue
		}
		switch string(kind) {
		case "some":
			p.Some.parse(fields)
		case "full":
			p.Full.parse(fields)
		default:
			continue
		}
		seen = true
	}
	if !seen {
		return nil
	}
	return &p
}

// parse takes "avg10=1.50 avg60=0.75 avg300=0.25 total=123456".
func (p *Pressure) parse(fields []byte) {
	for len(fields) > 0 {
		var field []byte
		field, fields, _ = bytes.Cut(fields, []byte{' '})
		key, value, _ := bytes.Cut(field, []byte{'='})
		switch string(key) {
		case "avg10":
			p.Avg10 = decimal(value)
		case "avg60":
			p.Avg60 = decimal(value)
		case "avg300":
			p.Avg300 = decimal(value)
		case "total":
			if n, ok := digits(value); ok {
				p.Total = n * 1000 // the kernel counts microseconds
			}
		}
	}
}

// decimal parses "1.50"; 0 if it is none.
func decimal(b []byte) float64 {
	whole, part, _ := bytes.Cut(b, []byte{'.'})
	n, ok := digits(whole)
	if !ok {
		return 0
	}
	scale := uint64(1)
	for range part[:min(len(part), 6)] {
		scale *= 10
	}
	f, ok := digits(part[:min(len(part), 6)])
	if !ok || n > 1<<32 {
		return float64(n)
	}
	return float64(n*scale+f) / float64(scale)
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
