// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ociRuntime is an OCI runtime made of shell, which finds a command's options in $@.
func ociRuntime(t *testing.T, text string) *ociStandIn {
	t.Helper()
	c := script(t, text)
	c.oci, c.shim, c.ociOptions = c.shim, "", []string{"--first"}
	s := &ociStandIn{command: c, folder: c.dir()}
	if err := os.MkdirAll(s.folder, 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestARuntimesWordsAreInTheError(t *testing.T) {
	s := ociRuntime(t, `echo '{"msg":"no such","level":"error"}{"msg":"thing"}' >"$4"; exit 128`)
	s.ociOptions = nil
	if err := s.call("start", "c1"); err == nil || !strings.Contains(err.Error(), "start: exit status 128: no such; thing") {
		t.Errorf("got %v", err)
	}
	if got := messages([]byte(`{"msg":"a"}{"other":1}garbage`)); got != "a" {
		t.Errorf("got %q", got)
	}
}

func TestAnExecThatEndsAtOnceHasStarted(t *testing.T) {
	s := ociRuntime(t, `while [ $# -gt 1 ]; do case $1 in --pid-file) echo $$ >$2;; --internal-pid-file) echo 7 >$2;; esac; shift; done; exit 3`)
	s.options["--process"] = filepath.Join(t.TempDir(), "process.json")
	if err := os.WriteFile(s.options["--process"], []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.exec(); err != nil || s.internal != 7 {
		t.Fatalf("internal pid %d, %v", s.internal, err)
	}
	if code := s.waitExec(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	bad := ociRuntime(t, `exit 128`)
	bad.options["--process"] = s.options["--process"]
	if err := bad.exec(); err == nil || !strings.Contains(err.Error(), "ended before") {
		t.Errorf("an exec that did not start: %v", err)
	}
	if left, err := os.ReadDir(bad.dir()); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestTheExitCodeIsTheWaitsAnswer(t *testing.T) {
	for text, want := range map[string]int{`echo '{"id":"c1","exitStatus":137}'`: 137, "exit 1": lostCode, "echo garbage": lostCode} {
		if got := ociRuntime(t, text).waitContainer(); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

func TestOptionsOfARuntimeComeFirst(t *testing.T) {
	c, err := parse([]string{"--oci", "/r", "--oci-option", "--a=b", "--oci-option", "-c", "--root", "/root", "--log", "/l", "kill", "--all", "x", "9"})
	if err != nil || c.oci != "/r" || !slices.Equal(c.ociOptions, []string{"--a=b", "-c"}) {
		t.Errorf("got %+v, %v", c, err)
	}
	if want := []string{"--root", "/root", "--log", "/l", "kill", "--all", "x", "9"}; !slices.Equal(c.rest, want) {
		t.Errorf("passed on: %q", c.rest)
	}
	if _, err := parse([]string{"--oci", "/r", "--shim", "/s", "--root", "/root", "delete", "x"}); err == nil {
		t.Error("both a runtime and a shim were taken")
	}
}
