// SPDX-License-Identifier: Apache-2.0

package operator

import "time"

const (
	// window is the time over which a rate is measured.
	window = 3 * time.Second
	// progressEvery bounds how often a check tells how far it is.
	progressEvery = 200 * time.Millisecond
)

type sample struct {
	at    time.Time
	bytes int64
}

// rate measures bytes per second over the last window.
type rate struct{ samples []sample }

func (r *rate) add(bytes int64) int64 { return r.addAt(time.Now(), bytes) }

func (r *rate) addAt(now time.Time, bytes int64) int64 {
	r.samples = append(r.samples, sample{now, bytes})
	for len(r.samples) > 2 && now.Sub(r.samples[1].at) >= window {
		r.samples = r.samples[1:]
	}
	first := r.samples[0]
	took := now.Sub(first.at)
	if took <= 0 {
		return 0
	}
	return int64(float64(bytes-first.bytes) / took.Seconds())
}

// throttle lets one in a while pass.
type throttle struct{ last time.Time }

func (t *throttle) now() bool {
	if time.Since(t.last) < progressEvery {
		return false
	}
	t.last = time.Now()
	return true
}
