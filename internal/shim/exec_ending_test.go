// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-run/berth/internal/shimapi/shimpb"
	taskpb "github.com/berth-run/berth/internal/shimapi/task"
)

// TestExecInAContainerThatEnds: whatever the OCI runtime stumbles over, the container is not running.
func TestExecInAContainerThatEnds(t *testing.T) {
	s := startShim(t)
	failed := 0
	for round := range 15 {
		id := s.run(testContainer{script: "sleep 1000"})
		var execs sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			execs.Go(func() {
				time.Sleep(time.Duration(i) * 4 * time.Millisecond)
				_, errs[i] = s.shim.Exec(s.ctx, &shimpb.ExecRequest{Id: id, ExecId: fmt.Sprint(i), Process: mustJSON(t, s.process(false, "true"))})
			})
		}
		time.Sleep(time.Duration(round) * 2 * time.Millisecond)
		if _, err := s.task.Kill(s.ctx, &taskpb.KillRequest{Id: id, Signal: uint32(syscall.SIGKILL), All: round%2 == 0}); err != nil {
			t.Fatal(err)
		}
		execs.Wait()
		for _, err := range errs {
			if err != nil {
				failed++
			}
			if code := status.Code(err); code != codes.OK && code != codes.FailedPrecondition {
				t.Errorf("round %d: %v", round, err)
			}
		}
		s.wait(id, "")
		s.delete(id)
	}
	if failed == 0 {
		t.Error("no exec met the end of its container")
	}
}
