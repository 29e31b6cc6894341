// SPDX-License-Identifier: Apache-2.0

// Package wire has the messages of containerd.task.v3.Task and berth.shim.v1.Shim as plain structs with a codec of
// their own. The protobuf runtime costs a process half a megabyte before the first call, and a node pays that once per
// pod; the shim knows two dozen messages, all of strings and small numbers. Only internal/shim uses it: the
// daemon and the tests use the generated packages in internal/shimapi, and the tests compare the two.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// Message names its fields to a codec, each with its number; the codec encodes or decodes them.
type Message interface{ fields(c *codec) }

// Wire types of protobuf.
const (
	varintType  = 0
	fixed64Type = 1
	bytesType   = 2
	fixed32Type = 5
)

var errMalformed = errors.New("malformed message")

// codec appends the fields that a message names to out, or looks for the one field that it has just read.
type codec struct {
	out []byte

	reading bool
	number  int
	kind    int
	value   uint64
	data    []byte
	err     error
}

// Marshal encodes a message. Fields with a zero value are left out.
func Marshal(m Message) []byte {
	c := &codec{}
	m.fields(c)
	return c.out
}

// Unmarshal decodes a message over m's values. Unknown fields are skipped. Bytes in m share data's memory.
func Unmarshal(data []byte, m Message) error {
	c := &codec{reading: true}
	for len(data) > 0 {
		var err error
		if data, err = c.next(data); err != nil {
			return err
		}
		if m.fields(c); c.err != nil {
			return c.err
		}
	}
	return nil
}

// next reads one field and returns what follows it.
func (c *codec) next(data []byte) ([]byte, error) {
	key, n := binary.Uvarint(data)
	if n <= 0 || key>>3 == 0 || key>>3 > 1<<29-1 {
		return nil, fmt.Errorf("%w: field key", errMalformed)
	}
	c.number, c.kind, data = int(key>>3), int(key&7), data[n:]
	var size int
	switch c.kind {
	case varintType:
		if c.value, n = binary.Uvarint(data); n <= 0 {
			return nil, fmt.Errorf("%w: number in field %d", errMalformed, c.number)
		}
		return data[n:], nil
	case bytesType:
		length, n := binary.Uvarint(data)
		if n <= 0 || length > uint64(len(data)-n) {
			return nil, fmt.Errorf("%w: length of field %d", errMalformed, c.number)
		}
		data, size = data[n:], int(length)
	case fixed64Type:
		size = 8
	case fixed32Type:
		size = 4
	default:
		return nil, fmt.Errorf("%w: type %d of field %d", errMalformed, c.kind, c.number)
	}
	if size > len(data) {
		return nil, fmt.Errorf("%w: field %d is cut off", errMalformed, c.number)
	}
	c.data = data[:size:size]
	return data[size:], nil
}

// is tells that the field that was read is this one and has the right type.
func (c *codec) is(number, kind int) bool { return c.number == number && c.kind == kind }

func (c *codec) putKey(number, kind int) {
	c.out = binary.AppendUvarint(c.out, uint64(number)<<3|uint64(kind))
}

func (c *codec) varint(number int, value uint64, set func(uint64)) {
	if c.reading {
		if c.is(number, varintType) {
			set(c.value)
		}
		return
	}
	if value != 0 {
		c.putKey(number, varintType)
		c.out = binary.AppendUvarint(c.out, value)
	}
}

func (c *codec) uint32(number int, v *uint32) {
	c.varint(number, uint64(*v), func(value uint64) { *v = uint32(value) })
}

func (c *codec) int32(number int, v *int32) {
	c.varint(number, uint64(int64(*v)), func(value uint64) { *v = int32(value) })
}

func (c *codec) int64(number int, v *int64) {
	c.varint(number, uint64(*v), func(value uint64) { *v = int64(value) })
}

func (c *codec) uint64(number int, v *uint64) {
	c.varint(number, *v, func(value uint64) { *v = value })
}

func (c *codec) bool(number int, v *bool) {
	var value uint64
	if *v {
		value = 1
	}
	c.varint(number, value, func(value uint64) { *v = value != 0 })
}

func (c *codec) bytes(number int, v *[]byte) {
	if c.reading {
		if c.is(number, bytesType) {
			*v = c.data
		}
		return
	}
	if len(*v) > 0 {
		c.put(number, *v)
	}
}

func (c *codec) put(number int, data []byte) {
	c.putKey(number, bytesType)
	c.out = binary.AppendUvarint(c.out, uint64(len(data)))
	c.out = append(c.out, data...)
}

// string replaces what is not UTF-8: the other side would refuse the whole message for it.
func (c *codec) string(number int, v *string) {
	if c.reading {
		if c.is(number, bytesType) {
			*v = string(c.data)
		}
		return
	}
	if *v != "" {
		c.put(number, []byte(strings.ToValidUTF8(*v, "\uFFFD")))
	}
}

// strings is a repeated string.
func (c *codec) strings(number int, v *[]string) {
	if !c.reading {
		for i := range *v {
			c.put(number, []byte((*v)[i]))
		}
		return
	}
	if c.is(number, bytesType) {
		*v = append(*v, string(c.data))
	}
}

// message is a field that is there even if all of its own fields are zero.
func (c *codec) message(number int, v Message) {
	if !c.reading {
		c.put(number, Marshal(v))
		return
	}
	if c.is(number, bytesType) {
		c.err = Unmarshal(c.data, v)
	}
}

// optional is a message that is left out when all of its fields are zero.
func (c *codec) optional(number int, v Message) {
	if !c.reading && len(Marshal(v)) == 0 {
		return
	}
	c.message(number, v)
}

// list is a repeated message.
func list[T any, P interface {
	*T
	Message
}](c *codec, number int, v *[]T) {
	if !c.reading {
		for i := range *v {
			c.message(number, P(&(*v)[i]))
		}
		return
	}
	if c.is(number, bytesType) {
		var element T
		c.message(number, P(&element))
		*v = append(*v, element)
	}
}

// timestamp is google.protobuf.Timestamp; the zero time is a field that is not there.
type timestamp struct {
	seconds int64
	nanos   int32
}

func (t *timestamp) fields(c *codec) {
	c.int64(1, &t.seconds)
	c.int32(2, &t.nanos)
}

func (c *codec) time(number int, v *time.Time) {
	var t timestamp
	if !v.IsZero() {
		t = timestamp{v.Unix(), int32(v.Nanosecond())}
	}
	if !c.reading {
		if !v.IsZero() {
			c.message(number, &t)
		}
		return
	}
	if !c.is(number, bytesType) {
		return
	}
	c.message(number, &t)
	if t.nanos < 0 || int64(t.nanos) >= int64(time.Second) || t.seconds > math.MaxInt64/2 || t.seconds < math.MinInt64/2 {
		c.err = errors.Join(c.err, fmt.Errorf("%w: time in field %d", errMalformed, number))
		return
	}
	*v = time.Unix(t.seconds, int64(t.nanos))
}
