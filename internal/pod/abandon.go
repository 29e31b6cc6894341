// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// maxAbandoned bounds the work that nobody waits for any more: each piece is a thread that the kernel does not give back until a file system answers.
const maxAbandoned = 64

// ending is closed when a sandbox is about to stop.
type ending struct {
	once sync.Once
	c    chan struct{}
}

func (e *ending) begin() { e.once.Do(func() { close(e.c) }) }

// specResult is what came of making a spec.
type specResult struct {
	spec ContainerSpec
	err  error
}

// makeSpecUnlessEnding makes a container's spec, for which volumes are looked at. One whose file system does not answer does not keep its pod from
// being stopped: it is left to itself then, and what comes of it to nobody. ErrState.
func (c *Container) makeSpecUnlessEnding(r SpecRequest) (ContainerSpec, error) {
	var left atomic.Bool
	r.Doing = func(what string) {
		if !left.Load() {
			c.ops.doing(what)
		}
	}
	defer c.ops.doing("")
	made := make(chan specResult, 1)
	go func() {
		var res specResult
		defer func() {
			if p := recover(); p != nil {
				res.err = fmt.Errorf("panic: %v", p)
				c.log.Error("making a spec panicked", "panic", p, "stack", string(debug.Stack()))
			}
			made <- res
		}()
		res.spec, res.err = c.m.parts.Specs.Container(r)
	}()
	select {
	case res := <-made:
		return res.spec, res.err
	case <-c.sandbox.ending.c:
	}
	if c.m.abandoned.Add(1) > maxAbandoned {
		c.m.abandoned.Add(-1)
		res := <-made
		return res.spec, res.err
	}
	left.Store(true)
	go func() {
		<-made
		c.m.abandoned.Add(-1)
	}()
	return ContainerSpec{}, fmt.Errorf("%s is being stopped: %w", c.sandbox, ErrState)
}
