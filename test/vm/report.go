// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

// What the guest says about steps, between the tests' own lines. The control character keeps them apart from anything that a test may print.
const (
	beginMark = "\x01begin "
	endMark   = "\x01end "
	downMark  = "\x01down "
	// testMark is what -test.v=test2json puts before its own lines, though a test has not ended its last one.
	testMark = "\x16"
)

// maxLine bounds what is kept of a line that does not end.
const maxLine = 64 << 10

func reportBegin(w io.Writer, s step) { fmt.Fprintf(w, "\n%s%s\n", beginMark, s.Name) }

// reportDown says that the machine went down in a step, which is begun again.
func reportDown(w io.Writer, s step) { fmt.Fprintf(w, "\n%s%s\n", downMark, s.Name) }

// reportEnd says how a step ended. The error is one line.
func reportEnd(w io.Writer, s step, took time.Duration, err error) {
	how := "ok"
	if err != nil {
		how = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	fmt.Fprintf(w, "\n%s%s %s %s\n", endMark, s.Name, took.Round(100*time.Millisecond), how)
}

// report counts the results in what the guest sends. It is a Writer; it prints what failed at once and a line for each step.
type report struct {
	out     io.Writer
	verbose bool
	// emulator tells whether it was the emulator's fault that the machine went down for the n-th time.
	emulator func(n int) bool
	downs    int

	passed, failed int

	line bytes.Buffer
	// step is the one that runs; before holds the counts when it began, skipped is its own.
	step                                string
	passedBefore, failedBefore, skipped int
	ended                               map[string]bool
	// test is the output of the top-level test that runs, printed if that fails.
	test []string
}

func newReport(out io.Writer, verbose bool) *report {
	return &report{out: out, verbose: verbose, ended: make(map[string]bool)}
}

// Write takes a piece of the guest's output, cut anywhere.
func (r *report) Write(data []byte) (int, error) {
	for _, b := range data {
		if b == '\n' {
			r.take(strings.TrimRight(r.line.String(), "\r"))
			r.line.Reset()
		} else if r.line.Len() < maxLine {
			r.line.WriteByte(b)
		}
	}
	return len(data), nil
}

func (r *report) take(line string) {
	if name, ok := strings.CutPrefix(line, beginMark); ok {
		r.step, r.passedBefore, r.failedBefore, r.skipped, r.test = name, r.passed, r.failed, 0, nil
		fmt.Fprintf(r.out, "== %s\n", name)
		return
	}
	if text, ok := strings.CutPrefix(line, endMark); ok {
		r.end(text)
		return
	}
	if name, ok := strings.CutPrefix(line, downMark); ok {
		r.down(name)
		return
	}
	if r.verbose && line != "" {
		fmt.Fprintln(r.out, strings.ReplaceAll(line, testMark, ""))
	}
	var passed, failed, skipped int
	if n, _ := fmt.Sscanf(line, "%d passed, %d failed, %d skipped", &passed, &failed, &skipped); n == 3 { // the CRI validation suite's
		r.passed, r.failed, r.skipped = r.passed+passed, r.failed+failed, r.skipped+skipped
	}
	before, event, marked := strings.Cut(line, testMark)
	if !marked {
		r.keep(line)
		return
	}
	if before != "" {
		r.keep(before)
	}
	r.event(event)
}

// event is a line of the testing package itself. For subtests their parents count.
func (r *report) event(line string) {
	r.keep(line)
	if name, _, _ := strings.Cut(strings.TrimPrefix(line, "--- "), " ("); strings.Contains(name, "/") {
		return
	}
	switch {
	case strings.HasPrefix(line, "--- PASS: "):
		r.passed++
	case strings.HasPrefix(line, "--- SKIP: "):
		r.skipped++
	case strings.HasPrefix(line, "--- FAIL: "):
		r.failed++
		r.print()
	case strings.HasPrefix(line, "=== RUN "):
		if len(r.test) > 1 && !r.parallel() {
			r.test = r.test[len(r.test)-1:]
		}
	}
}

// parallel tells that tests run side by side, so that lines cannot be told apart by when they came.
func (r *report) parallel() bool {
	for _, line := range r.test {
		if strings.HasPrefix(line, "=== PAUSE") {
			return true
		}
	}
	return false
}

const keptLines = 400

func (r *report) keep(line string) {
	if line == "" {
		return
	}
	r.test = append(r.test, line)
	if len(r.test) > 2*keptLines {
		r.test = append(r.test[:0], r.test[len(r.test)-keptLines:]...)
	}
}

func (r *report) print() {
	if !r.verbose {
		for _, line := range r.test {
			fmt.Fprintln(r.out, "   ", line)
		}
	}
	r.test = nil
}

// end counts a step that failed for another reason than a failed test (a panic, a limit, a machine that went down) as one failure.
func (r *report) end(text string) {
	name, rest, _ := strings.Cut(text, " ")
	took, how, _ := strings.Cut(rest, " ")
	if how != "ok" && (r.failed == r.failedBefore || how != "exit status 1") {
		r.failed++
		r.print()
	}
	if how == "ok" && r.passed == r.passedBefore && r.failed == r.failedBefore {
		r.failed++
		how = "no test was run"
	}
	r.ended[name] = true
	fmt.Fprintf(r.out, "   %s: %d passed, %d failed, %d skipped in %s: %s\n",
		name, r.passed-r.passedBefore, r.failed-r.failedBefore, r.skipped, took, how)
}

// down forgets what a step has brought before the machine went down, which is a failure of its own unless it was the emulator's.
func (r *report) down(name string) {
	r.downs++
	if r.step == name {
		r.passed, r.failed, r.skipped = r.passedBefore, r.failedBefore, 0
	}
	if r.emulator != nil && r.emulator(r.downs) {
		fmt.Fprintf(r.out, "   %s: the emulator failed, the step begins again\n", name)
		return
	}
	r.failed++
	fmt.Fprintf(r.out, "   %s: the machine went down\n", name)
	r.print()
}

// finish counts as failed the steps that did not come to their end.
func (r *report) finish(steps []step) {
	for _, s := range steps {
		if s.Reboot == "" && !r.ended[s.Name] {
			r.failed++
			fmt.Fprintf(r.out, "   %s: did not end\n", s.Name)
		}
	}
}
