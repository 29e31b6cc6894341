// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/test/transcript"
)

// TestOnlyAnEndThatNobodyAskedForIsAWarning has a shim end by SIGKILL in both ways.
func TestOnlyAnEndThatNobodyAskedForIsAWarning(t *testing.T) {
	leakCheck(t)
	for name, c := range map[string]struct {
		end  func(*testing.T, *Runtime)
		want string
	}{
		"asked for": {func(t *testing.T, r *Runtime) {
			if err := r.KillShim(timeout(t, 10*time.Second), testSandbox); err != nil {
				t.Fatal(err)
			}
		}, "level=DEBUG"},
		"by somebody else": {func(t *testing.T, r *Runtime) {
			if err := syscall.Kill(readShimFact(t, r).PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, "level=WARN"},
	} {
		t.Run(name, func(t *testing.T) {
			r, log := newRuntime(t, Config{}), &transcript.Text{}
			r.log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			shim, err := r.StartShim(timeout(t, 10*time.Second), ShimRequest{Sandbox: testSandbox})
			if err != nil {
				t.Fatal(err)
			}
			defer shim.Close()
			c.end(t, r)
			var line string
			eventually(t, "a line about the end", func() bool {
				for l := range strings.Lines(log.String()) {
					if strings.Contains(l, "shim has ended") {
						line = l
					}
				}
				return line != ""
			})
			if !strings.Contains(line, c.want) || !strings.Contains(line, "signal: killed") {
				t.Errorf("got %s, want %s", line, c.want)
			}
		})
	}
}
