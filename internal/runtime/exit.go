// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/task"
)

// waitPace is the first pause before Wait asks again over a connection that keeps breaking; it grows to waitPaceMax.
const (
	waitPace    = 50 * time.Millisecond
	waitPaceMax = 5 * time.Second
)

// Exit is how a container ended.
type Exit struct {
	// Code is what init returned, or 128+Signal.
	Code int
	// Signal is the number of the signal that ended it, 0 if none did.
	Signal              int
	OOMKilled           bool
	StartedAt, ExitedAt time.Time
	// LogBytesDropped counts bytes of output that the log file did not take.
	LogBytesDropped uint64
}

// Wait blocks until the container has ended. It answers from the facts on disk where the shim is gone or has forgotten
// the container, and tells ErrShimGone or ErrNotFound only when there are none.
func (s *Shim) Wait(ctx context.Context, id string) (Exit, error) {
	for pace := waitPace; ; pace = min(2*pace, waitPaceMax) {
		var resp *task.WaitResponse
		err := s.taskCall(ctx, repeat, "wait for", id, func(c task.TaskService) (err error) {
			resp, err = c.Wait(ctx, &task.WaitRequest{Id: id})
			return err
		})
		switch {
		case err == nil:
			return s.exitFacts(ctx, id, resp)
		case errors.Is(err, ErrShimGone), errors.Is(err, ErrNotFound):
			exit, ok, readErr := s.runtime.ReadExit(shimapi.BundlePath(s.dir, id))
			if ok {
				return exit, nil
			}
			return Exit{}, errors.Join(err, readErr)
		case !errors.Is(err, ErrBroken):
			return Exit{}, err
		}
		if !pause(ctx, pace) {
			return Exit{}, errors.Join(err, ctx.Err())
		}
	}
}

// exitFacts reads what the shim wrote before it answered. Where it could not write it, a full /run, the answer and
// what the shim remembers must do.
func (s *Shim) exitFacts(ctx context.Context, id string, resp *task.WaitResponse) (Exit, error) {
	exit, ok, err := s.runtime.ReadExit(shimapi.BundlePath(s.dir, id))
	if ok {
		return exit, nil
	}
	s.runtime.log.Warn("no exit facts on disk", "sandbox", s.sandbox, "container", id, "error", err)
	exit = Exit{Code: int(resp.GetExitStatus()), ExitedAt: resp.GetExitedAt().AsTime()}
	info, err := s.Info(ctx)
	if err != nil {
		s.runtime.log.Warn("no exit facts in the shim", "sandbox", s.sandbox, "container", id, "error", err)
	}
	for _, t := range info.Tasks {
		if t.GetId() == id {
			exit.OOMKilled, exit.LogBytesDropped = t.GetOomKilled(), t.GetLogBytesDropped()
		}
	}
	return exit, nil
}

// ReadExit reads the exit facts in a bundle; false if there are none.
func (r *Runtime) ReadExit(bundle string) (Exit, bool, error) {
	fact, err := shimapi.ReadExitFact(bundle)
	if errors.Is(err, fs.ErrNotExist) {
		return Exit{}, false, nil
	}
	if err != nil {
		return Exit{}, false, fmt.Errorf("exit of container: %w", err)
	}
	return Exit{Code: int(fact.ExitCode), Signal: fact.Signal, OOMKilled: fact.OOMKilled, StartedAt: fact.StartedAt,
		ExitedAt: fact.ExitedAt, LogBytesDropped: fact.LogBytesDropped}, true, nil
}
