// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// sent is a guest's output: the tests' lines as test2json marks them, between what the guest says of its steps.
func sent(t *testing.T, name, tests string, err error) string {
	t.Helper()
	var b strings.Builder
	reportBegin(&b, step{Name: name})
	b.WriteString(tests)
	reportEnd(&b, step{Name: name}, time.Second, err)
	return b.String()
}

func TestResultsAreCounted(t *testing.T) {
	exit := errors.New("exit status 1")
	for name, c := range map[string]struct {
		text           string
		passed, failed int
	}{
		"all pass":                   {sent(t, "a", "\x16=== RUN   TestA\n\x16--- PASS: TestA (0.1s)\nPASS\n", nil), 1, 0},
		"subtests belong to parents": {sent(t, "a", "\x16=== RUN   TestA\n\x16--- PASS: TestA/x (0.1s)\n\x16--- PASS: TestA (0.1s)\n", nil), 1, 0},
		"a failed test":              {sent(t, "a", "\x16--- FAIL: TestA (0.1s)\n\x16--- PASS: TestB (0.1s)\nFAIL\n", exit), 1, 1},
		"after an unfinished line":   {sent(t, "a", "text without an end\x16--- PASS: TestA (0.1s)\n", nil), 1, 0},
		"what only looks like it":    {sent(t, "a", "--- PASS: TestX (0.1s)\n\x16--- PASS: TestA (0.1s)\n", nil), 1, 0},
		"a panic":                    {sent(t, "a", "\x16--- PASS: TestA (0.1s)\npanic: x\n", errors.New("exit status 2")), 1, 1},
		"a panic after a failure":    {sent(t, "a", "\x16--- FAIL: TestA (0.1s)\npanic: x\n", errors.New("exit status 2")), 0, 2},
		"a limit":                    {sent(t, "a", "\x16=== RUN   TestA\n", errors.New("it still ran after 1s")), 0, 1},
		"exit status without a test": {sent(t, "a", "cannot set up\n", exit), 0, 1},
		"no test":                    {sent(t, "a", "PASS\n", nil), 0, 1},
		"only skipped":               {sent(t, "a", "\x16--- SKIP: TestA (0.1s)\nPASS\n", nil), 0, 1},
		"a suite's own count":        {sent(t, "a", "9 passed, 2 failed, 5 skipped\n\x16--- FAIL: TestA (0.1s)\n", exit), 9, 3},
		"never ended":                {"\n" + beginMark + "a\n\x16--- PASS: TestA (0.1s)\n", 1, 1},
		"nothing came":               {"", 0, 1},
	} {
		for _, size := range []int{1, 7, 1 << 20} { // pieces are cut anywhere
			var out strings.Builder
			r := newReport(&out, false)
			for rest := c.text; rest != ""; rest = rest[min(size, len(rest)):] {
				r.Write([]byte(rest[:min(size, len(rest))]))
			}
			r.finish([]step{{Name: "a"}, {Name: "again", Reboot: orderly}})
			if r.passed != c.passed || r.failed != c.failed {
				t.Errorf("%s: %d passed, %d failed; want %d, %d:\n%s", name, r.passed, r.failed, c.passed, c.failed, out.String())
			}
		}
	}
}

func TestAStepIsBegunAgainWhenTheMachineWentDown(t *testing.T) {
	for emulator, want := range map[bool]int{true: 0, false: 1} {
		var out, sent strings.Builder
		r := newReport(&out, false)
		r.emulator = func(n int) bool { return emulator && n == 1 }
		s := step{Name: "a"}
		reportBegin(&sent, s)
		sent.WriteString("\x16--- PASS: TestA (0.1s)\n\x16=== RUN   TestB\n")
		reportDown(&sent, s)
		reportBegin(&sent, s)
		sent.WriteString("\x16--- PASS: TestA (0.1s)\n\x16--- PASS: TestB (0.1s)\nPASS\n")
		reportEnd(&sent, s, time.Second, nil)
		r.Write([]byte(sent.String()))
		r.finish([]step{s})
		if r.passed != 2 || r.failed != want {
			t.Errorf("the emulator's fault %v: %d passed, %d failed:\n%s", emulator, r.passed, r.failed, out.String())
		}
	}
}

func TestPanicsOfTheEmulatorAreToldFromOthers(t *testing.T) {
	const ours, its = "[1.0] Oops: int3: 0000 [#1] PREEMPT SMP\n[1.1] Oops: int3: 0000 [#2]\n[1.2] Kernel panic - not syncing: Fatal exception\n", "[1.0] Kernel panic - not syncing: x\n"
	for text, want := range map[string]bool{"": false, ours: true, its: false, ours + its: false, ours + ours: true} {
		m := machine{logs: t.TempDir()}
		if err := os.WriteFile(m.console(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := m.emulatorFailed(1); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestTheOutputOfAFailedTestIsPrinted(t *testing.T) {
	var out strings.Builder
	r := newReport(&out, false)
	r.Write([]byte(sent(t, "a", "\x16=== RUN   TestA\nfine\n\x16--- PASS: TestA (0.1s)\n\x16=== RUN   TestB\nthe reason\n\x16--- FAIL: TestB (0.1s)\n",
		errors.New("exit status 1"))))
	if text := out.String(); !strings.Contains(text, "the reason") || strings.Contains(text, "fine") {
		t.Errorf("printed:\n%s", text)
	}
}
