// SPDX-License-Identifier: Apache-2.0

// Package telemetry is how the daemon tells what it does: the structured log, the pod and container that each line belongs to, and
// the one gRPC interceptor, which gives errors their codes, logs and measures the calls and survives panics. Every daemon package
// may use it; the shim must not, because it links gRPC.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
)

// Log is the daemon's log, whose form and level can change while it is in use.
type Log struct {
	logger *slog.Logger
	level  slog.LevelVar
	json   atomic.Bool
}

// NewLog makes a log that writes to w. Format is "text" or "json", level one of "debug", "info", "warn" and "error".
func NewLog(w io.Writer, format, level string) (*Log, error) {
	l := &Log{}
	if err := l.Set(format, level); err != nil {
		return nil, err
	}
	o := &slog.HandlerOptions{Level: &l.level, ReplaceAttr: readable}
	l.logger = slog.New(handler{text: slog.NewTextHandler(w, o), jsonl: slog.NewJSONHandler(w, o), json: &l.json})
	return l, nil
}

// Logger writes to the log, now and after each Set.
func (l *Log) Logger() *slog.Logger { return l.logger }

// Set changes form and level of all that is logged from now on; an error leaves both as they are.
func (l *Log) Set(format, level string) error {
	if format != "text" && format != "json" {
		return fmt.Errorf("log format %q is not one of text, json", format)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, level) {
		return fmt.Errorf("log level %q is not one of debug, info, warn, error", level)
	}
	var parsed slog.Level
	if err := parsed.UnmarshalText([]byte(level)); err != nil {
		return fmt.Errorf("log level: %w", err)
	}
	l.level.Set(parsed)
	l.json.Store(format == "json")
	return nil
}

// readable gives durations their unit: slog's JSON has bare nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	return a
}

// handler adds the context's attributes to each record and hands it to the handler of the form that is set. Loggers made by
// Logger.With before a Set must follow it, so both forms are carried along.
type handler struct {
	text, jsonl slog.Handler
	json        *atomic.Bool
	// keys are those that Logger.With has given already: a key must not stand twice in a line.
	keys []string
}

func (h handler) current() slog.Handler {
	if h.json.Load() {
		return h.jsonl
	}
	return h.text
}

func (h handler) Enabled(ctx context.Context, l slog.Level) bool { return h.current().Enabled(ctx, l) }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	fromContext := attrsOf(ctx)
	if len(fromContext) == 0 {
		return h.current().Handle(ctx, r)
	}
	taken := slices.Clone(h.keys)
	r.Attrs(func(a slog.Attr) bool {
		taken = append(taken, a.Key)
		return true
	})
	r = r.Clone()
	for _, a := range fromContext {
		if !slices.Contains(taken, a.Key) {
			r.AddAttrs(a)
		}
	}
	return h.current().Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	keys := slices.Clone(h.keys)
	for _, a := range attrs {
		keys = append(keys, a.Key)
	}
	return handler{text: h.text.WithAttrs(attrs), jsonl: h.jsonl.WithAttrs(attrs), json: h.json, keys: keys}
}

// WithGroup opens a group; the context's attributes then stand inside it, and no key outside is in their way.
func (h handler) WithGroup(name string) slog.Handler {
	return handler{text: h.text.WithGroup(name), jsonl: h.jsonl.WithGroup(name), json: h.json}
}
