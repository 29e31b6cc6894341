// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/berth-run/berth/test/transcript"
)

func TestRunWithOutputAndExitCode(t *testing.T) {
	n := start(t)
	for _, program := range []string{"containerd-shim-berth-v1", "berth-shim"} { // the second becomes the first
		n.shim = filepath.Join(binDir, program)
		c := n.create("run-"+program, nil, nil, sh("echo out; echo err >&2; exit 3")).start()
		if code := c.ended(); code != 3 {
			t.Errorf("%s: exit code %d, want 3", program, code)
		}
		if code := c.delete(); code != 3 {
			t.Errorf("%s: exit code by delete %d, want 3", program, code)
		}
		if out, err := c.stdout.String(), c.stderr.String(); out != "out\n" || err != "err\n" {
			t.Errorf("%s: output %q, %q", program, out, err)
		}
	}
}

func TestMuchOutputComesWhole(t *testing.T) {
	n := start(t)
	c := n.create("much", nil, nil, sh("head -c 20000000 /dev/zero; echo done >&2")).start()
	c.ended()
	c.delete()
	if got := len(c.stdout.String()); got != 20000000 || c.stderr.String() != "done\n" {
		t.Errorf("%d bytes, stderr %q", got, c.stderr.String())
	}
}

func TestStdinEndsWithItsClient(t *testing.T) {
	n := start(t)
	r, w := pipe(t)
	c := n.create("stdin", r, nil, sh("cat; echo end")).start()
	io.WriteString(w, "one\n")
	n.until("output of the first half", func() bool { return strings.Contains(c.stdout.String(), "one\n") })
	io.WriteString(w, "two\n")
	w.Close() // the client copies on, then it closes its end of the FIFO, without CloseIO
	if code := c.ended(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	c.delete()
	if got := c.stdout.String(); got != "one\ntwo\nend\n" {
		t.Errorf("output %q", got)
	}
}

func TestCloseIOHalfClosesStdin(t *testing.T) {
	n := start(t)
	r, w := pipe(t)
	c := n.create("closeio", r, nil, sh("cat; echo end")).start()
	io.WriteString(w, "one\n")
	n.until("output", func() bool { return strings.Contains(c.stdout.String(), "one\n") })
	if err := c.task.CloseIO(n.ctx, client.WithStdinCloser); err != nil {
		t.Fatal(err)
	}
	c.ended()
	w.Close()
	c.delete()
	if got := c.stdout.String(); got != "one\nend\n" {
		t.Errorf("output %q", got)
	}
}

func TestATerminalHasItsSize(t *testing.T) {
	n := start(t)
	r, w := pipe(t)
	c := n.create("tty", r, []cio.Opt{cio.WithTerminal}, oci.WithTTY, sh("read a; stty size; read b; tty")).start()
	if err := c.task.Resize(n.ctx, 101, 42); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "x\n")
	n.until("the size", func() bool { return strings.Contains(c.stdout.String(), "42 101") })
	io.WriteString(w, "x\n")
	c.ended()
	w.Close()
	c.delete()
	if got := c.stdout.String(); !strings.Contains(got, "/dev/pts/0") {
		t.Errorf("output %q", got)
	}
}

// pipe is a file to read stdin from, and its other end.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestKillAndWhatIsStillThere(t *testing.T) {
	n := start(t)
	c := n.create("kill", nil, nil, sh("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")).start()
	n.until("the trap is set", func() bool { return c.stdout.String() == "up\n" })
	if _, err := c.task.Delete(n.ctx); err == nil {
		t.Error("a running task was deleted")
	}
	pids, err := c.task.Pids(n.ctx)
	if err != nil || len(pids) == 0 || pids[0].Pid != c.task.Pid() {
		t.Errorf("processes %v, %v", pids, err)
	}
	c.kill(syscall.SIGTERM)
	if code := c.ended(); code != 7 {
		t.Errorf("exit code %d, want the trap's", code)
	}
	if err := c.task.Kill(n.ctx, syscall.SIGKILL); err == nil {
		t.Error("what has ended was killed")
	}
	c.delete()
	c = n.create("killed", nil, nil, oci.WithProcessArgs("sleep", "1000")).start()
	c.kill(syscall.SIGKILL, client.WithKillAll)
	if code := c.ended(); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	c.delete()
}

func TestATaskThatIsNeverStarted(t *testing.T) {
	n := start(t)
	c := n.create("created", nil, nil, oci.WithProcessArgs("sleep", "1000"))
	if s, err := c.task.Status(n.ctx); err != nil || s.Status != client.Created {
		t.Errorf("status %v, %v", s.Status, err)
	}
	if _, err := c.task.Delete(n.ctx, client.WithProcessKill); err != nil {
		t.Error(err)
	}
}

func TestExec(t *testing.T) {
	n := start(t)
	c := n.create("exec", nil, nil, oci.WithProcessArgs("sleep", "1000")).start()
	if code, out := c.exec("one", nil, "sh", "-c", "echo hello; exit 5"); code != 5 || out != "hello\n" {
		t.Errorf("exit code %d, output %q", code, out)
	}
	r, w := pipe(t)
	go func() { io.WriteString(w, "abc"); w.Close() }()
	if code, out := c.exec("two", r, "cat"); code != 0 || out != "abc" {
		t.Errorf("exit code %d, output %q", code, out)
	}
	if _, err := c.tryExec("missing", nil, nil, "/no/such/program"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a program that is not there: %v", err)
	}
	c.kill(syscall.SIGKILL)
	c.ended()
	c.delete()
}

func TestAnExecIsKilled(t *testing.T) {
	n := start(t)
	c := n.create("execkill", nil, nil, oci.WithProcessArgs("sleep", "1000")).start()
	process, err := c.tryExec("long", nil, &transcript.Text{}, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	wait, err := process.Wait(n.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := process.Status(n.ctx); err != nil || s.Status != client.Running {
		t.Errorf("status %v, %v", s.Status, err)
	}
	if err := process.Kill(n.ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := <-wait; s.ExitCode() != 137 {
		t.Errorf("exit code %d, want 137", s.ExitCode())
	}
	if _, err := process.Delete(n.ctx); err != nil {
		t.Error(err)
	}
	c.kill(syscall.SIGKILL)
	c.ended()
	c.delete()
}

// exec runs a program to its end.
func (c *container) exec(id string, in *os.File, args ...string) (uint32, string) {
	c.Helper()
	out := &transcript.Text{}
	process, err := c.tryExec(id, in, out, args...)
	if err != nil {
		c.Fatal(err)
	}
	wait, err := process.Wait(c.ctx)
	if err != nil {
		c.Fatal(err)
	}
	select {
	case status := <-wait:
		if _, err := process.Delete(c.ctx); err != nil {
			c.Fatal(errors.Join(err, status.Error()))
		}
		return status.ExitCode(), out.String()
	case <-time.After(patience):
		c.Fatalf("exec %s does not end", id)
		return 0, ""
	}
}

// tryExec starts a program.
func (c *container) tryExec(id string, in *os.File, out *transcript.Text, args ...string) (client.Process, error) {
	c.Helper()
	spec, err := c.Spec(c.ctx)
	if err != nil {
		c.Fatal(err)
	}
	spec.Process.Args, spec.Process.Terminal = args, false
	if out == nil {
		out = &transcript.Text{}
	}
	streams := cio.WithStreams(nil, out, out)
	if in != nil {
		streams = cio.WithStreams(in, out, out)
	}
	process, err := c.task.Exec(c.ctx, id, spec.Process, cio.NewCreator(streams))
	if err != nil {
		c.Fatal(err)
	}
	if err := process.Start(c.ctx); err != nil {
		if _, deleteErr := process.Delete(c.ctx); deleteErr != nil {
			c.Errorf("delete exec %s that did not start: %v", id, deleteErr)
		}
		return nil, err
	}
	return process, nil
}
