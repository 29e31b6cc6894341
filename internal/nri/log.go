// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	nrilog "github.com/containerd/nri/pkg/log"
)

// lines turns the library's log lines into ours. The library has one logger for all, which goroutines of its own may use at any time.
type lines struct{ to *atomic.Pointer[slog.Logger] }

var logs = lines{&atomic.Pointer[slog.Logger]{}}

func init() { nrilog.Set(logs) }

func setLog(log *slog.Logger) { logs.to.Store(log.With("part", "nri")) }

func (l lines) line(ctx context.Context, level slog.Level, format string, args []any) {
	if log := l.to.Load(); log != nil && log.Enabled(ctx, level) {
		log.Log(ctx, level, fmt.Sprintf(format, args...))
	}
}

// Debugf implements the library's Logger.
func (l lines) Debugf(ctx context.Context, format string, args ...any) {
	l.line(ctx, slog.LevelDebug, format, args)
}

// Infof implements the library's Logger. What is news to the library is detail to an operator.
func (l lines) Infof(ctx context.Context, format string, args ...any) {
	l.line(ctx, slog.LevelDebug, format, args)
}

// Warnf implements the library's Logger.
func (l lines) Warnf(ctx context.Context, format string, args ...any) {
	l.line(ctx, slog.LevelWarn, format, args)
}

// Errorf implements the library's Logger.
func (l lines) Errorf(ctx context.Context, format string, args ...any) {
	l.line(ctx, slog.LevelError, format, args)
}
