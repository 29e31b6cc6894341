// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"log/slog"
	"sync"

	"k8s.io/klog/v2"
)

var quiet sync.Once

// quietLibraries sends what the streaming libraries log, each client's leaving as an error, to the daemon's log as a detail.
func quietLibraries(log *slog.Logger) {
	quiet.Do(func() { klog.SetSlogLogger(slog.New(detail{log.Handler()}).With("library", "cri-streaming")) })
}

// detail lowers every level to debug.
type detail struct{ slog.Handler }

func (d detail) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

func (d detail) Handle(ctx context.Context, r slog.Record) error {
	if !d.Enabled(ctx, r.Level) { // the library does not ask for errors
		return nil
	}
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

func (d detail) WithAttrs(attrs []slog.Attr) slog.Handler { return detail{d.Handler.WithAttrs(attrs)} }
func (d detail) WithGroup(name string) slog.Handler       { return detail{d.Handler.WithGroup(name)} }
