// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAContainerThatDoesNotGoOnIsToldAndTriedAgain: its own shim fails to let it go on, so the next daemon tries.
func TestAContainerThatDoesNotGoOnIsToldAndTriedAgain(t *testing.T) {
	n, _, c := running(t)
	location := filepath.Join(t.TempDir(), "c.tar")
	n.w.mu.Lock()
	n.w.fault = fault{every: "resume task", kind: "error before"}
	n.w.mu.Unlock()
	err := n.Checkpoint(t.Context(), CheckpointRequest{ID: c, Location: location})
	if !errors.Is(err, errFrozen) || !strings.Contains(err.Error(), "stands still") {
		t.Errorf("got %v", err)
	}
	n.w.mu.Lock()
	paused := n.w.held["pause "+c]
	n.w.fault = fault{}
	n.w.mu.Unlock()
	if !paused {
		t.Fatal("the fake's container goes on")
	}
	n = n.restart(t)
	n.w.mu.Lock()
	paused = n.w.held["pause "+c]
	n.w.mu.Unlock()
	if paused {
		t.Error("the next daemon lets it stand still")
	}
	if err := n.Checkpoint(t.Context(), CheckpointRequest{ID: c, Location: location}); err != nil {
		t.Error(err)
	}
}

// TestAStopDoesNotWaitForACheckpoint, which then fails and leaves nothing.
func TestAStopDoesNotWaitForACheckpoint(t *testing.T) {
	n, _, c := running(t)
	dir := t.TempDir()
	g := n.w.waitIn("checkpoint task")
	result := make(chan error, 1)
	go func() {
		result <- n.Checkpoint(t.Context(), CheckpointRequest{ID: c, Location: filepath.Join(dir, "c.tar")})
	}()
	<-g.reached
	if work := n.Operations(); len(work) != 1 || work[0].ID != c || !strings.HasPrefix(work[0].Kind, "CheckpointContainer") {
		t.Errorf("under way: %+v", work)
	}
	if err := n.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	close(g.open)
	if err := <-result; err == nil {
		t.Error("a checkpoint of what is gone")
	}
	entries, err := os.ReadDir(n.checkpointsDir())
	if err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
