// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	// maxSpread bounds the CPUs that one answer takes.
	maxSpread = 4
	// minSpread is how many objects are worth a goroutine: a container takes some 20 µs.
	minSpread = 8
)

// spread calls f once for each of 0 to n-1 and returns when all are done, on several CPUs where that is worth it. What is asked for here are
// files that the kernel renders at once, so there is nothing to cancel. A panic in f is the caller's.
func spread(n int, f func(i int)) {
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
			f(int(i))
		}
	}
	var wg sync.WaitGroup
	var panicked atomic.Pointer[any]
	for range min(runtime.GOMAXPROCS(0), maxSpread, n/minSpread) - 1 {
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					panicked.Store(&p)
				}
			}()
			work()
		})
	}
	defer func() {
		wg.Wait()
		if p := panicked.Load(); p != nil {
			panic(*p)
		}
	}()
	work()
}
