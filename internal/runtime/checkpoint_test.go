// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheLastErrorsOfADumpAreTold(t *testing.T) {
	log := filepath.Join(t.TempDir(), dumpLogName)
	if got := criuErrors(log); got != "" {
		t.Errorf("without a log: %q", got)
	}
	text := strings.Repeat("(00.001) a line\n", maxCRIULog/8) +
		"(00.01) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self\n(00.02) Warn  (x): y\n(00.03) Error (a.c:1): two\n(00.04) Error (b.c:2): three\n" +
		"(00.05) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.\n(00.06) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := "Error (a.c:1): two; Error (b.c:2): three; Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option."
	if got := criuErrors(log); got != want {
		t.Errorf("got %q", got)
	}
	if err := os.WriteFile(log, []byte("Error ("+strings.Repeat("x", maxCRIULog)), 0o600); err != nil { // one line without an end
		t.Fatal(err)
	}
	if got := criuErrors(log); got != "" {
		t.Errorf("a line of %d bytes: %d bytes", maxCRIULog, len(got))
	}
}
