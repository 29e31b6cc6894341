// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"sync/atomic"
	"testing"
)

func TestSpreadDoesEachOnce(t *testing.T) {
	for _, n := range []int{0, 1, minSpread, 2*minSpread + 1, 1000} {
		done := make([]atomic.Int32, n)
		spread(n, func(i int) { done[i].Add(1) })
		for i := range done {
			if got := done[i].Load(); got != 1 {
				t.Errorf("%d of %d: done %d times", i, n, got)
			}
		}
	}
}

func TestAPanicOnAnotherGoroutineIsTheCallers(t *testing.T) {
	defer func() {
		if p := recover(); p != "here" {
			t.Errorf("recovered %v", p)
		}
	}()
	spread(1000, func(int) { panic("here") })
}
