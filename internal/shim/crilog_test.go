// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// logLine is one parsed line of a CRI log.
type logLine struct {
	at      time.Time
	stream  string
	tag     string
	content string
}

var logLineForm = regexp.MustCompile(`(?s)^(\S+) (stdout|stderr) ([FP]) (.*)$`)

func parseLog(t testing.TB, data string) []logLine {
	t.Helper()
	if data != "" && !strings.HasSuffix(data, "\n") {
		t.Fatalf("log ends within a line: %.100q", data[max(0, len(data)-100):])
	}
	var lines []logLine
	for text := range strings.Lines(data) {
		parts := logLineForm.FindStringSubmatch(strings.TrimSuffix(text, "\n"))
		if parts == nil {
			t.Fatalf("not a CRI log line: %.100q", text)
		}
		at, err := time.Parse(time.RFC3339Nano, parts[1])
		if err != nil {
			t.Fatal(err)
		}
		if len(parts[4]) > maxLogLine {
			t.Fatalf("line of %d bytes", len(parts[4]))
		}
		lines = append(lines, logLine{at, parts[2], parts[3], parts[4]})
	}
	return lines
}

func readLog(t testing.TB, path string) []logLine {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseLog(t, string(data))
}

// reassemble is what `kubectl logs` makes of one stream.
func reassemble(lines []logLine, stream string) string {
	var all strings.Builder
	for _, line := range lines {
		if line.stream != stream {
			continue
		}
		all.WriteString(line.content)
		if line.tag == "F" {
			all.WriteByte('\n')
		}
	}
	return all.String()
}

func newTestLog(t testing.TB) (*criLog, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	log, err := openLog("", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.close)
	return log, path
}

func TestLogLines(t *testing.T) {
	long := strings.Repeat("x", maxLogLine)
	for name, test := range map[string]struct {
		reads []string
		want  string // tag and content of each line
	}{
		"one line":                         {[]string{"hello\n"}, "F hello\n"},
		"several lines in a read":          {[]string{"a\nb\n\nc\n"}, "F a\nF b\nF \nF c\n"},
		"a line in several reads":          {[]string{"hel", "lo", "\n"}, "F hello\n"},
		"line ends across reads":           {[]string{"a", "\nb", "\n"}, "F a\nF b\n"},
		"no line end":                      {[]string{"a\nprompt> "}, "F a\nP prompt> \n"},
		"carriage return stays":            {[]string{"a\r\n"}, "F a\r\n"},
		"exactly the limit":                {[]string{long + "\n"}, "F " + long + "\n"},
		"the limit, its end in a new read": {[]string{long, "\n"}, "F " + long + "\n"},
		"one over the limit":               {[]string{long + "y\n"}, "P " + long + "\nF y\n"},
		"one over, byte by byte":           {[]string{long[1:], "x", "y", "\n"}, "P " + long + "\nF y\n"},
		"twice the limit":                  {[]string{long + long + "\n"}, "P " + long + "\nF " + long + "\n"},
		"the limit without an end":         {[]string{long}, "P " + long + "\n"},
		"nothing":                          {nil, ""},
		"only a line end":                  {[]string{"\n"}, "F \n"},
		"zero bytes":                       {[]string{"\x00\xff\n"}, "F \x00\xff\n"},
	} {
		t.Run(name, func(t *testing.T) {
			log, path := newTestLog(t)
			stream := newLogStream(log, "stdout")
			for _, read := range test.reads {
				if err := stream.put([]byte(read)); err != nil {
					t.Fatal(err)
				}
			}
			stream.close()
			var got strings.Builder
			for _, line := range readLog(t, path) {
				got.WriteString(line.tag + " " + line.content + "\n")
			}
			if got.String() != test.want {
				t.Errorf("got %.80q, want %.80q", got.String(), test.want)
			}
		})
	}
}

func TestLogTimeIsRFC3339NanoInTheLocalZone(t *testing.T) {
	log, path := newTestLog(t)
	stream := newLogStream(log, "stderr")
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.FixedZone("x", 5400))
	stream.now = func() time.Time { return at }
	stream.put([]byte("m\n"))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "2026-01-02T03:04:05.678901234+01:30 stderr F m\n"; string(data) != want {
		t.Errorf("got %q, want %q", data, want)
	}
}

func TestStreamsInterleaveByLinesAcrossReopens(t *testing.T) {
	log, path := newTestLog(t)
	var writers sync.WaitGroup
	for _, name := range []string{"stdout", "stderr"} {
		writers.Go(func() {
			stream := newLogStream(log, name)
			for i := range 5000 {
				stream.put(fmt.Appendf(nil, "%s line %d\n%s", name, i, "rest")) // ends within a line
				stream.put([]byte(" of it\n"))
			}
			stream.close()
		})
	}
	var rotated []string
	for i := range 20 {
		old := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		if err := log.reopen(); err != nil {
			t.Fatal(err)
		}
		rotated = append(rotated, old)
		time.Sleep(time.Millisecond)
	}
	writers.Wait()
	var lines []logLine
	for _, file := range append(rotated, path) {
		lines = append(lines, readLog(t, file)...)
	}
	for _, name := range []string{"stdout", "stderr"} {
		var want strings.Builder
		for i := range 5000 {
			fmt.Fprintf(&want, "%s line %d\nrest of it\n", name, i)
		}
		if reassemble(lines, name) != want.String() {
			t.Errorf("%s was damaged", name)
		}
	}
}

func TestFailedReopenKeepsTheOldFile(t *testing.T) {
	log, path := newTestLog(t)
	dir := filepath.Dir(path)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := log.reopen(); err == nil {
		t.Fatal("reopened in a missing folder")
	}
	stream := newLogStream(log, "stdout")
	stream.put([]byte("still here\n"))
	if lines := readLog(t, filepath.Join(dir+".away", "0.log")); len(lines) != 1 {
		t.Fatal(lines)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
}

func TestFullDiskDropsCountsAndRecovers(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small tmpfs (the tests need root): %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	path := filepath.Join(dir, "0.log")
	log, err := openLog("", path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.close()
	stream := newLogStream(log, "stdout")
	sent := 0
	for range 100 {
		line := strings.Repeat("z", 1500)
		stream.put([]byte(line + "\n"))
		sent += len(line)
	}
	lines := readLog(t, path)
	kept := 0
	for _, line := range lines {
		kept += len(line.content)
	}
	if kept == 0 || kept == sent || uint64(sent-kept) != log.dropped.Load() {
		t.Fatalf("sent %d, kept %d, dropped %d", sent, kept, log.dropped.Load())
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	dropped := log.dropped.Load()
	stream.put([]byte("space again\n"))
	if lines := readLog(t, path); len(lines) != 1 || lines[0].content != "space again" || log.dropped.Load() != dropped {
		t.Fatalf("%v, dropped %d then %d", lines, dropped, log.dropped.Load())
	}
}

func TestLogFileMustBePlain(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, "real"), 0o755))
	must(os.Symlink("real", filepath.Join(dir, "link")))
	must(os.WriteFile(filepath.Join(dir, "target"), nil, 0o600))
	must(os.Symlink("target", filepath.Join(dir, "linked.log")))
	must(syscall.Mkfifo(filepath.Join(dir, "fifo.log"), 0o600))
	must(os.Mkdir(filepath.Join(dir, "folder.log"), 0o755))
	for _, name := range []string{"link/0.log", "linked.log", "fifo.log", "folder.log", "missing/0.log"} {
		if log, err := openLog("", filepath.Join(dir, name)); err == nil {
			log.close()
			t.Errorf("%s was opened", name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "real", "0.log")); err == nil {
		t.Error("a log was made through a linked folder")
	}
	log, err := openLog("", "")
	must(err)
	must(newLogStream(log, "stdout").put([]byte("dropped\n")))
	if log.dropped.Load() != 0 {
		t.Error("output that nobody wants was counted")
	}
}

func FuzzLogKeepsContent(f *testing.F) {
	f.Add([]byte("a\nb\nc"), uint64(1))
	f.Add(bytes.Repeat([]byte("long "), 10000), uint64(2))
	f.Add([]byte("\n\n\x00"), uint64(3))
	f.Fuzz(func(t *testing.T, input []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		if len(input) > 0 && random.IntN(4) == 0 { // long lines are rare in small inputs
			input = bytes.Repeat(input, 1+random.IntN(1+60000/len(input)))
		}
		log, path := newTestLog(t)
		stream := newLogStream(log, "stdout")
		for rest := input; len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(bufferSize))
			stream.put(rest[:n])
			rest = rest[n:]
		}
		stream.close()
		lines := readLog(t, path)
		if reassemble(lines, "stdout") != string(input) {
			t.Fatalf("%.200q became %.200v", input, lines)
		}
		for i, line := range lines {
			if line.tag == "P" && i < len(lines)-1 && len(line.content) != maxLogLine {
				t.Fatalf("line %d was cut at %d bytes", i, len(line.content))
			}
		}
	})
}

func BenchmarkLog(b *testing.B) {
	log, _ := newTestLog(b)
	stream := newLogStream(log, "stdout")
	chunk := bytes.Repeat([]byte(strings.Repeat("w", 99)+"\n"), 320)
	b.SetBytes(int64(len(chunk)))
	for i := 0; b.Loop(); i++ {
		stream.put(chunk)
		if i%1000 == 999 {
			log.file.Truncate(0)
		}
	}
}
