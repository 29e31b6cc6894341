// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func idleOps(stage func() string) *ops {
	return &ops{object: "container c", stage: stage, work: &inFlight{}, log: slog.New(slog.DiscardHandler)}
}

// An answer that comes with the deadline is not read any more.
func TestACallerIsAnsweredBeforeItsDeadline(t *testing.T) {
	for patience, early := range map[time.Duration]time.Duration{2 * time.Minute: time.Second, 10 * time.Second: time.Second / 2, 0: 0, -time.Second: 0} {
		synctest.Test(t, func(t *testing.T) {
			o := idleOps(func() string { return "network for 1s" })
			release := make(chan struct{})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			begin := time.Now()
			err := o.do(ctx, "CreateContainer", func(context.Context) error { <-release; return nil })
			if !errors.Is(err, ErrInFlight) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "in stage network for 1s") {
				t.Errorf("%s: got %v", patience, err)
			}
			if got, want := time.Since(begin), max(patience-early, 0); got != want {
				t.Errorf("%s: answered after %s, want %s", patience, got, want)
			}
			close(release)
			if err := o.do(t.Context(), "CreateContainer", func(context.Context) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatIsDoneOutsideOfAllStepsIsToldToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stage := ""
		o := idleOps(func() string { return stage })
		begun, release := make(chan struct{}), make(chan struct{})
		done := make(chan error)
		go func() {
			done <- o.do(t.Context(), "CreateContainer", func(context.Context) error {
				o.doing("volume /v")
				close(begun)
				<-release
				return nil
			})
		}()
		<-begun
		time.Sleep(3 * time.Second)
		if cur, ok := o.current(); !ok || cur.Stage != "volume /v for 3s" {
			t.Errorf("got %+v", cur)
		}
		stage = "rootfs for 1s" // roll-back, for example
		if cur, _ := o.current(); cur.Stage != stage {
			t.Errorf("got %+v", cur)
		}
		stage = ""
		o.doing("")
		if cur, _ := o.current(); cur.Stage != "" {
			t.Errorf("got %+v", cur)
		}
		close(release)
		if err := <-done; err != nil {
			t.Error(err)
		}
		o.doing("nothing is in flight")
		if cur, ok := o.current(); ok {
			t.Errorf("got %+v", cur)
		}
	})
}
