// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func newLog(t *testing.T, format, level string) (*Log, *bytes.Buffer) {
	t.Helper()
	var b bytes.Buffer
	l, err := NewLog(&b, format, level)
	if err != nil {
		t.Fatal(err)
	}
	return l, &b
}

func TestSetChangesLoggersThatExist(t *testing.T) {
	l, out := newLog(t, "text", "info")
	log := l.Logger().With("part", "x")
	log.Debug("hidden")
	log.Info("one")
	if err := l.Set("json", "debug"); err != nil {
		t.Fatal(err)
	}
	log.Debug("two", "took", 1500*time.Millisecond)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "msg=one part=x") {
		t.Fatalf("lines: %q", lines)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(lines[1]), &line); err != nil {
		t.Fatal(err)
	}
	if line["msg"] != "two" || line["part"] != "x" || line["took"] != "1.5s" {
		t.Errorf("json line: %v", line)
	}
}

func TestUnknownFormatOrLevelIsRefusedAndChangesNothing(t *testing.T) {
	l, out := newLog(t, "text", "info")
	for _, bad := range [][2]string{{"xml", "info"}, {"json", "loud"}, {"text", "INFO+1"}} {
		if l.Set(bad[0], bad[1]) == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
	l.Logger().Info("x")
	if !strings.HasPrefix(out.String(), "time=") {
		t.Errorf("got %q", out)
	}
	if _, err := NewLog(out, "", "info"); err == nil {
		t.Error("NewLog accepts an empty format")
	}
}

func TestContextAttributesAreInEachLineOnce(t *testing.T) {
	l, out := newLog(t, "text", "info")
	ctx := With(context.Background(), slog.String("sandbox", "s1"), slog.String("pod", "ns/old"))
	ctx = With(ctx, slog.String("pod", "ns/new"))
	l.Logger().InfoContext(ctx, "a")
	l.Logger().With("sandbox", "s1").InfoContext(ctx, "b", "pod", "own")
	l.Logger().WithGroup("g").InfoContext(ctx, "c", "k", "v")
	lines := strings.Split(out.String(), "\n")
	for i, want := range []string{"msg=a sandbox=s1 pod=ns/new", "msg=b sandbox=s1 pod=own", "msg=c g.k=v g.sandbox=s1 g.pod=ns/new"} {
		if !strings.HasSuffix(lines[i], want) {
			t.Errorf("line %d: %q, want …%q", i, lines[i], want)
		}
	}
}

func TestWithLeavesTheParentContextAlone(t *testing.T) {
	parent := With(context.Background(), slog.String("a", "1"))
	_ = With(parent, slog.String("b", "2"))
	second := With(parent, slog.String("c", "3"))
	if got := attrsOf(parent); len(got) != 1 {
		t.Errorf("parent: %v", got)
	}
	if got := attrsOf(second); len(got) != 2 || got[1].Key != "c" {
		t.Errorf("second: %v", got)
	}
}
