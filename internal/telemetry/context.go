// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"log/slog"
)

type attrsKey struct{}

// With returns a context in which every line that is logged carries attrs. An attribute replaces an earlier one of its key.
func With(ctx context.Context, attrs ...slog.Attr) context.Context {
	if len(attrs) == 0 {
		return ctx
	}
	var all []slog.Attr
	for _, old := range attrsOf(ctx) {
		if !hasKey(attrs, old.Key) {
			all = append(all, old)
		}
	}
	return context.WithValue(ctx, attrsKey{}, append(all, attrs...))
}

func attrsOf(ctx context.Context) []slog.Attr {
	if ctx == nil {
		return nil
	}
	attrs, _ := ctx.Value(attrsKey{}).([]slog.Attr)
	return attrs
}

func hasKey(attrs []slog.Attr, key string) bool {
	for _, a := range attrs {
		if a.Key == key {
			return true
		}
	}
	return false
}
