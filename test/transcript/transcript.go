// SPDX-License-Identifier: Apache-2.0

// Package transcript collects what programs and logs write, for tests that look at it meanwhile.
package transcript

import (
	"bytes"
	"sync"
)

// Text may be written to and read by several goroutines. Its zero value is empty.
type Text struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (t *Text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

// String returns all that was written so far.
func (t *Text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}
