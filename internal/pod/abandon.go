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

// result is what came of a piece of work.
type result[T any] struct {
	value T
	err   error
}

// makeSpecUnlessEnding makes a container's spec, for which volumes are looked at. ErrState as unlessEnding has it.
func (c *Container) makeSpecUnlessEnding(r SpecRequest) (ContainerSpec, error) {
	return unlessEnding(c, func(doing func(string)) (ContainerSpec, error) {
		r.Doing = doing
		return c.m.parts.Specs.Container(r)
	})
}

// unlessEnding does work that looks at file systems of others, and tells what it is doing. One that does not answer does not keep the container's pod from
// being stopped: the work is left to itself then, and what comes of it to nobody. ErrState.
func unlessEnding[T any](c *Container, work func(doing func(string)) (T, error)) (T, error) {
	var left atomic.Bool
	doing := func(what string) {
		if !left.Load() {
			c.ops.doing(what)
		}
	}
	defer c.ops.doing("")
	done := make(chan result[T], 1)
	go func() {
		var res result[T]
		defer func() {
			if p := recover(); p != nil {
				res.err = fmt.Errorf("panic: %v", p)
				c.log.Error("work for a container panicked", "panic", p, "stack", string(debug.Stack()))
			}
			done <- res
		}()
		res.value, res.err = work(doing)
	}()
	select {
	case res := <-done:
		return res.value, res.err
	case <-c.sandbox.ending.c:
	}
	if c.m.abandoned.Add(1) > maxAbandoned {
		c.m.abandoned.Add(-1)
		res := <-done
		return res.value, res.err
	}
	left.Store(true)
	go func() {
		<-done
		c.m.abandoned.Add(-1)
	}()
	var none T
	return none, fmt.Errorf("%s is being stopped: %w", c.sandbox, ErrState)
}
