// SPDX-License-Identifier: Apache-2.0

package pidfd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
)

// pace is how often KillAll looks whether a process has ended.
const pace = 5 * time.Millisecond

// KillAll kills processes, in their order, and returns when they have ended, though perhaps are not yet reaped. It never hits another process that has
// got a pid since. It is idempotent. It returns an error when ctx ends first.
func KillAll(ctx context.Context, all ...proc.ID) error {
	var errs []error
	for _, p := range all {
		if _, err := KillIf(p.PID, syscall.SIGKILL, p.Runs); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for _, p := range all {
		for p.Runs() {
			select {
			case <-ctx.Done():
				return fmt.Errorf("process %d survives SIGKILL: %w", p.PID, ctx.Err())
			case <-time.After(pace):
			}
		}
	}
	return nil
}
