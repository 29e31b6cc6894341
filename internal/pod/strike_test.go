// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
)

// TestNobodyWritesTheRecordOfASandboxThatIsRemoved has facts come in all the time, as that of a shim's end may at any moment.
func TestNobodyWritesTheRecordOfASandboxThatIsRemoved(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	for range 50 {
		id, err := n.RunSandbox(t.Context(), podConfig(), "")
		if err != nil {
			t.Fatal(err)
		}
		s, err := n.SandboxByID(id)
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		s.ledger.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
		var learner sync.WaitGroup
		begun, done := make(chan struct{}), make(chan struct{})
		learner.Go(func() {
			close(begun)
			for {
				select {
				case <-done:
					return
				default:
					s.learn(func(*sandboxRecord) {})
				}
			}
		})
		<-begun
		err = n.RemoveSandbox(t.Context(), id)
		close(done)
		learner.Wait()
		if err != nil || log.Len() > 0 {
			t.Fatalf("%v\n%s", err, log.String())
		}
	}
	n.mustBeEmpty(t)
}
