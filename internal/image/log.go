// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"github.com/sirupsen/logrus"
)

// containerd's libraries log through logrus's global logger. What they say is detail for whoever debugs a pull, and
// belongs into the daemon's log, in its format; errors come back to us as errors.
var quietOnce sync.Once

func quiet(log *slog.Logger) {
	quietOnce.Do(func() {
		logrus.SetOutput(io.Discard)
		logrus.AddHook(hook{log})
	})
}

type hook struct{ log *slog.Logger }

func (hook) Levels() []logrus.Level { return logrus.AllLevels }

func (h hook) Fire(e *logrus.Entry) error {
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		if err, ok := v.(error); ok {
			v = redacted{err}
		}
		if s, ok := v.(string); ok {
			v = redact(s)
		}
		attrs = append(attrs, slog.Any(k, v))
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	h.log.LogAttrs(ctx, slog.LevelDebug, "containerd: "+redact(e.Message), attrs...)
	return nil
}
