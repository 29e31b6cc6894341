// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math"
	"strings"
)

// Figures are what is read of a shim's metrics, of either kind: nanoseconds, bytes, tasks.
type Figures struct{ CPU, Memory, MemoryLimit, InactiveFile, Tasks uint64 }

// Figures reads metrics of cgroup v1 or v2.
func (m *StatsResponse) Figures() (Figures, error) {
	var f Figures
	kind := m.Stats.TypeURL[strings.LastIndexByte(m.Stats.TypeURL, '/')+1:]
	switch kind {
	case "io.containerd.cgroups.v1.Metrics":
		return f, Unmarshal(m.Stats.Value, (*figuresV1)(&f))
	case "io.containerd.cgroups.v2.Metrics":
		err := Unmarshal(m.Stats.Value, (*figuresV2)(&f))
		f.CPU = min(f.CPU, math.MaxUint64/1000) * 1000 // microseconds
		return f, err
	}
	return f, fmt.Errorf("%w: metrics of the type %q", errMalformed, m.Stats.TypeURL)
}

// field is one number, or one message, of which nothing else is looked at.
type field struct {
	number int
	to     *uint64
	in     Message
}

func (f field) fields(c *codec) {
	if f.in != nil {
		c.message(f.number, f.in)
		return
	}
	c.uint64(f.number, f.to)
}

// all are fields of one message.
type all []field

func (a all) fields(c *codec) {
	for _, f := range a {
		f.fields(c)
	}
}

type figuresV1 Figures

func (m *figuresV1) fields(c *codec) {
	usage := all{{number: 1, to: &m.MemoryLimit}, {number: 2, to: &m.Memory}}
	all{
		{number: 2, in: field{number: 1, to: &m.Tasks}},
		{number: 3, in: field{number: 1, in: field{number: 1, to: &m.CPU}}},
		{number: 4, in: all{{number: 30, to: &m.InactiveFile}, {number: 33, in: usage}}},
	}.fields(c)
}

type figuresV2 Figures

func (m *figuresV2) fields(c *codec) {
	all{
		{number: 1, in: field{number: 1, to: &m.Tasks}},
		{number: 2, in: field{number: 1, to: &m.CPU}},
		{number: 4, in: all{{number: 13, to: &m.InactiveFile}, {number: 32, to: &m.Memory}, {number: 33, to: &m.MemoryLimit}}},
	}.fields(c)
}
