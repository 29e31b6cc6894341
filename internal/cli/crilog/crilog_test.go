// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

const stamp = "2026-11-21T07:00:00.123456789Z"

// text collects the lines as a container wrote them; an unended one has no newline.
func text(into *strings.Builder) func(Chunk) error {
	return func(c Chunk) error {
		into.Write(c.Data)
		if c.End {
			into.WriteByte('\n')
		}
		return nil
	}
}

func parseAll(t *testing.T, log string, size int) (string, int64) {
	t.Helper()
	var got strings.Builder
	p := newParser(time.Time{}, text(&got))
	r := strings.NewReader(log)
	buf := make([]byte, size)
	for {
		n, err := r.Read(buf)
		if n == 0 && err != nil {
			break
		}
		if err := p.feed(buf[:n]); err != nil {
			t.Fatal(err)
		}
	}
	p.cut()
	return got.String(), p.skipped
}

func TestLinesArePutTogetherWhateverThePieces(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		name, log, want string
		skipped         int64
	}{
		{"whole lines", stamp + " stdout F one\n" + stamp + " stderr F two\n", "one\ntwo\n", 0},
		{"pieces", stamp + " stdout P o\n" + stamp + " stdout P n\n" + stamp + " stdout F e\n", "one\n", 0},
		{"an unended line", stamp + " stdout P prompt> \n", "prompt> ", 0},
		{"an empty line", stamp + " stdout F \n" + stamp + " stdout F\n", "\n\n", 0},
		{"tags after the first", stamp + " stdout F:x:y one\n", "one\n", 0},
		{"spaces and returns are content", stamp + " stdout F  a  b\r\n", " a  b\r\n", 0},
		{"a line of any length", stamp + " stdout F " + long + "\n", long + "\n", 0},
		{"a line that is being written", stamp + " stdout F on", "on", 0},
		{"not in the format", "hello\n" + long + "\n" + stamp + " stdin F x\n" + stamp + " stdout X x\nyesterday stdout F x\n" + stamp + " stdout F ok\n", "ok\n", 5},
		{"half a head at the end", stamp + " stdout F ok\n2026-", "ok\n", 1},
	} {
		for _, size := range []int{1, 7, 64 << 10} {
			got, skipped := parseAll(t, c.log, size)
			if got != c.want || skipped != c.skipped {
				t.Errorf("%s, %d bytes at a time: got %.80q and %d skipped, want %.80q and %d", c.name, size, got, skipped, c.want, c.skipped)
			}
		}
	}
}

func TestStreamsBeginTheirLinesEachForItself(t *testing.T) {
	var got []string
	p := newParser(time.Time{}, func(c Chunk) error {
		got = append(got, fmt.Sprintf("%s %s %v %v", c.Stream, c.Data, c.Begin, c.End))
		return nil
	})
	log := stamp + " stdout P a\n" + stamp + " stderr F b\n" + stamp + " stdout F c\n"
	if err := p.feed([]byte(log)); err != nil {
		t.Fatal(err)
	}
	want := "stdout a true false|stderr b true true|stdout c false true"
	if strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSinceLeavesOutWhatIsOlder(t *testing.T) {
	var got strings.Builder
	p := newParser(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), text(&got))
	log := "2025-12-31T23:59:59Z stdout F old\n2026-01-01T00:00:00Z stdout F new\n2025-12-31T23:59:59+00:00 stdout F\n2026-01-01T01:00:00+01:00 stdout F same\n"
	if err := p.feed([]byte(log)); err != nil {
		t.Fatal(err)
	}
	if got.String() != "new\nsame\n" {
		t.Errorf("got %q", got.String())
	}
}

func TestTailCountsTheContainersLines(t *testing.T) {
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, "%s stdout P %d-\n%s stdout F %s\n", stamp, i, stamp, strings.Repeat("y", i%90))
	}
	log := b.String()
	for _, c := range []struct {
		name, log string
		n         int64
		want      string
	}{
		{"none", stamp + " stdout F a\n", 0, ""},
		{"one of two", stamp + " stdout F a\n" + stamp + " stdout F b\n", 1, "b\n"},
		{"more than there are", stamp + " stdout F a\n", 9, "a\n"},
		{"a line in pieces is one", stamp + " stdout F a\n" + stamp + " stdout P b\n" + stamp + " stdout F c\n", 1, "bc\n"},
		{"an unended line is one", stamp + " stdout F a\n" + stamp + " stdout P b\n", 1, "b"},
		{"a line without newline is one", stamp + " stdout F a\n" + stamp + " stdout F b", 1, "b"},
		{"across blocks", log, 2, "4998-" + strings.Repeat("y", 4998%90) + "\n4999-" + strings.Repeat("y", 4999%90) + "\n"},
		{"empty", "", 3, ""},
	} {
		offset, err := tailOffset(strings.NewReader(c.log), int64(len(c.log)), c.n)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := parseAll(t, c.log[offset:], 64<<10); got != c.want {
			t.Errorf("%s: got %.80q, want %.80q", c.name, got, c.want)
		}
	}
	offset, err := tailOffset(strings.NewReader(log), int64(len(log)), 4999)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := parseAll(t, log[offset:], 64<<10); strings.Count(got, "\n") != 4999 || !strings.HasPrefix(got, "1-") {
		t.Errorf("4999 of 5000 lines: %d lines, begins %.10q", strings.Count(got, "\n"), got)
	}
	if _, err := tailOffset(failing{}, 10, 1); err == nil {
		t.Error("a file that cannot be read has a tail")
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, iotest.ErrTimeout }

// lines is a buffer that a test reads while Read writes.
type lines struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *lines) emit(c Chunk) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return text(&l.b)(c)
}

func (l *lines) wait(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		got := l.b.String()
		l.mu.Unlock()
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func appendTo(t *testing.T, path, line string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(stamp + " stdout F " + line + "\n"); err != nil {
		t.Fatal(err)
	}
}

func TestFollowGoesThroughRotationAndEndsWithTheContainer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	appendTo(t, path, "1")
	var running sync.Mutex
	alive := true
	o := Options{Follow: true, Tail: -1, Running: func(context.Context) (bool, error) {
		running.Lock()
		defer running.Unlock()
		return alive, nil
	}}
	var got lines
	done := make(chan error, 1)
	go func() { _, err := Read(t.Context(), path, o, got.emit); done <- err }()
	got.wait(t, "1\n")
	appendTo(t, path, "2")
	got.wait(t, "1\n2\n")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	appendTo(t, path+".old", "3") // the writer has not reopened yet
	time.Sleep(2 * poll)
	appendTo(t, path, "4")
	appendTo(t, path+".old", "3b")
	got.wait(t, "1\n2\n3\n3b\n4\n")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * poll)
	appendTo(t, path, "5")
	got.wait(t, "1\n2\n3\n3b\n4\n5\n")
	running.Lock()
	alive = false
	running.Unlock()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("goes on after the container's end")
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	appendTo(t, path, "1")
	ctx, cancel := context.WithCancel(t.Context())
	var got lines
	done := make(chan error, 1)
	go func() {
		_, err := Read(ctx, path, Options{Follow: true, Tail: 1}, got.emit)
		done <- err
	}()
	got.wait(t, "1\n")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ends with %v", err)
	}
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none")} {
		if _, err := Read(t.Context(), path, Options{Tail: -1}, func(Chunk) error { return nil }); err == nil {
			t.Errorf("%s was read", path)
		}
	}
}

// The pieces in which a file comes change nothing, what was emitted was in the file, and memory stays small.
func FuzzParser(f *testing.F) {
	f.Add([]byte(stamp+" stdout F one\n"+stamp+" stderr P two\n"), uint8(3))
	f.Add([]byte("\n\n"+stamp+" stdout F\nx"), uint8(1))
	f.Fuzz(func(t *testing.T, log []byte, size uint8) {
		collect := func(step int) (string, int64) {
			var got bytes.Buffer
			p := newParser(time.Time{}, func(c Chunk) error {
				if c.Stream != "stdout" && c.Stream != "stderr" {
					t.Fatalf("chunk of stream %q", c.Stream)
				}
				got.Write(c.Data)
				if c.End {
					got.WriteByte('\n')
				}
				return nil
			})
			for rest := log; len(rest) > 0; {
				n := min(step, len(rest))
				if err := p.feed(rest[:n]); err != nil {
					t.Fatal(err)
				}
				if len(p.head) > maxHead {
					t.Fatalf("a head of %d bytes is kept", len(p.head))
				}
				rest = rest[n:]
			}
			p.cut()
			return got.String(), p.skipped
		}
		whole, skippedWhole := collect(len(log) + 1)
		pieces, skippedPieces := collect(int(size) + 1)
		if whole != pieces || skippedWhole != skippedPieces {
			t.Fatalf("at once: %q (%d), in pieces: %q (%d)", whole, skippedWhole, pieces, skippedPieces)
		}
		for n := range int64(4) {
			offset, err := tailOffset(bytes.NewReader(log), int64(len(log)), n)
			if err != nil || offset < 0 || offset > int64(len(log)) || offset > 0 && offset < int64(len(log)) && log[offset-1] != '\n' {
				t.Fatalf("tail %d: offset %d, %v", n, offset, err)
			}
		}
	})
}
