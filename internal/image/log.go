// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/containerd/log"

	"github.com/berth-run/berth/internal/image/registry"
)

// containerd's libraries write to one logger of the whole process. What they say is detail for whoever debugs a pull, and belongs into the
// daemon's log, in its format and without secrets; errors come back to us as errors. The store that was opened last gets it.
var containerdLog struct {
	once sync.Once
	to   atomic.Pointer[slog.Logger]
}

func listenTo(to *slog.Logger) {
	containerdLog.to.Store(to)
	containerdLog.once.Do(func() {
		if err := log.SetFormat(log.JSONFormat); err != nil {
			to.Warn("containerd's log keeps its own form", "error", err)
			return
		}
		log.L.Logger.SetOutput(translator{})
	})
}

// translator takes one JSON object per call and logs it.
type translator struct{}

func (translator) Write(line []byte) (int, error) {
	to := containerdLog.to.Load()
	fields := map[string]any{}
	if json.Unmarshal(line, &fields) != nil { // not of its own writing
		fields = map[string]any{"msg": string(bytes.TrimSpace(line))}
	}
	text, _ := fields["msg"].(string)
	level := slog.LevelDebug
	if l, _ := fields["level"].(string); l == "error" || l == "fatal" || l == "panic" {
		level = slog.LevelWarn
	}
	if text == "ttrpc: received message on inactive stream" { // whose reader has left: an exec that was cut off, say
		level = slog.LevelDebug
	}
	var attrs []slog.Attr
	for k, v := range fields {
		switch k {
		case "msg", "level", "time":
			continue
		}
		if s, ok := v.(string); ok {
			v = registry.Redact(s)
		}
		attrs = append(attrs, slog.Any(k, v))
	}
	to.LogAttrs(context.Background(), level, "containerd: "+registry.Redact(text), attrs...)
	return len(line), nil
}
