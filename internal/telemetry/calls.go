// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"slices"
	"sync"
	"time"
)

// Call is a request that is not answered yet.
type Call struct {
	Method string
	Object Object
	Since  time.Time
}

// Calls are the requests in flight. Its size is bounded by what the gRPC server takes at a time.
type Calls struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]Call
}

// NewCalls makes an empty table.
func NewCalls() *Calls { return &Calls{open: map[uint64]Call{}} }

// List gives the calls in flight, the oldest first.
func (c *Calls) List() []Call {
	c.mu.Lock()
	list := make([]Call, 0, len(c.open))
	for _, call := range c.open {
		list = append(list, call)
	}
	c.mu.Unlock()
	slices.SortFunc(list, func(a, b Call) int { return a.Since.Compare(b.Since) })
	return list
}

func (c *Calls) add(call Call) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	c.open[c.last] = call
	return c.last
}

func (c *Calls) describe(id uint64, o Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call, ok := c.open[id]; ok {
		call.Object = o
		c.open[id] = call
	}
}

func (c *Calls) remove(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, id)
}
