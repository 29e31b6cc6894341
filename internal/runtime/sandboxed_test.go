// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFiguresOfSandboxedContainers(t *testing.T) {
	leakCheck(t)
	args := filepath.Join(t.TempDir(), "args")
	good := script(t, "echo \"$@\" >"+args+`; echo '{"cpu_ns":5000,"memory_bytes":400,"tasks":3}'`)
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: good}, "gvisor": {Path: good, Foreign: true, Root: "/r", Args: []string{"task"}},
		"bad": {Path: script(t, "echo no such sandbox >&2; exit 128"), Foreign: true}, "words": {Path: script(t, "echo hello"), Foreign: true}}})
	u, err := r.Stats(t.Context(), "gvisor", "c1")
	if err != nil || u.CPU != 5000 || u.Memory != 400 || u.Tasks != 3 {
		t.Errorf("got %+v, %v", u, err)
	}
	if got, err := os.ReadFile(args); err != nil || string(got) != "task --root /r stats c1\n" {
		t.Errorf("arguments: %q, %v", got, err)
	}
	_, err = r.Stats(t.Context(), "runc", "c1")
	want(t, "stats of runc", err, ErrUnsupported, "runc")
	_, err = r.Stats(t.Context(), "gvisor", "--all")
	want(t, "stats of an option", err, ErrInvalid, "--all")
	for handler, words := range map[string]string{"bad": "no such sandbox", "words": "invalid character"} {
		_, err = r.Stats(t.Context(), handler, "c1")
		says(t, err, words)
	}
}

func says(t *testing.T, err error, words string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, want an error with %q", err, words)
	}
}

// TestAPortInASandbox connects for the program, which is a script, and cannot.
func TestAPortInASandbox(t *testing.T) {
	leakCheck(t)
	path := filepath.Join(t.TempDir(), "socket")
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: script(t, "exit 0")},
		"gvisor":  {Path: script(t, `while [ "$1" != --stream ]; do shift; done; echo "$2 $3 $4" >`+path+`.new; mv `+path+`.new `+path+`; while [ ! -e `+path+`.connected ]; do sleep 0.01; done`), Foreign: true, Sandboxed: true},
		"refuses": {Path: script(t, "echo connection was refused >&2; exit 128"), Foreign: true, Sandboxed: true}}})
	left := filepath.Join(r.stateDir, forwardPrefix+"123")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := r.DialSandbox(t.Context(), "runc", "c1", 80)
	want(t, "runc", err, ErrUnsupported, "only those that listen on the pod's address")
	_, err = r.DialSandbox(t.Context(), "refuses", "c1", 80)
	says(t, err, "connection was refused")
	far := make(chan net.Conn, 1)
	go func() {
		defer close(far)
		var words []byte
		for begin := time.Now(); len(words) == 0 && time.Since(begin) < 9*time.Second; time.Sleep(5 * time.Millisecond) {
			words, _ = os.ReadFile(path) // it comes
		}
		socket, rest, _ := strings.Cut(string(words), " ")
		conn, err := net.Dial("unix", socket)
		if err != nil || rest != "c1 8080\n" {
			t.Errorf("arguments %q: %v", words, err)
		} else {
			far <- conn
		}
		if err := os.WriteFile(path+".connected", nil, 0o600); err != nil {
			t.Error(err)
		}
	}()
	near, err := r.DialSandbox(t.Context(), "gvisor", "c1", 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	conn, ok := <-far
	if !ok {
		t.Fatal("no connection")
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	var got [5]byte
	if _, err := near.Read(got[:]); err != nil || string(got[:]) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	for what, dir := range map[string]string{"the socket's folder": filepath.Dir(near.LocalAddr().String()), "a killed daemon's folder": left} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
