// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/transcript"
)

// eachTransport runs a test over SPDY and over WebSocket.
func eachTransport(t *testing.T, k *kubelet.Kubelet, f func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport)) {
	t.Helper()
	for _, tr := range kubelet.Transports {
		t.Run(string(tr), func(t *testing.T) {
			if tr == kubelet.WebSocket {
				berthOnly(t)
			}
			f(t, &kubelet.Kubelet{T: t, D: k.D, Image: k.Image}, tr)
		})
	}
}

// withT is a container for the calls of a subtest.
func withT(c *kubelet.Container, k *kubelet.Kubelet) *kubelet.Container {
	return &kubelet.Container{Pod: &kubelet.Pod{Kubelet: k, ID: c.Pod.ID, Config: c.Config}, ID: c.ID, Spec: c.Spec}
}

// buffer is what one stream of a session has brought.
type buffer struct{ transcript.Text }

func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	kubelet.Eventually(t, 20*time.Second, func() string {
		if s := b.String(); !strings.Contains(s, text) {
			return fmt.Sprintf("output %q lacks %q", s, text)
		}
		return ""
	})
}

// limit bounds one session.
func limit(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestExecStreams(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("stream")).Start(k.Forever("main"))
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		c := withT(c, k)
		for name, e := range map[string]struct {
			in, script  string
			code        int
			out, errOut string
		}{
			"both outputs and code": {"", "echo out; echo err >&2; exit 42", 42, "out\n", "err\n"},
			"end of stdin":          {"one\ntwo\n", "cat; echo end", 0, "one\ntwo\nend\n", ""},
			"stdin is not read":     {strings.Repeat("x", 300000), "echo done", 0, "done\n", ""},
			"stdin is closed":       {strings.Repeat("x", 300000), "exec <&-; sleep 0.3; echo done", 0, "done\n", ""},
			"signal":                {"", "kill -TERM $$", 143, "", ""},
			"background child":      {"", "sleep 30 & echo bye; exit 3", 3, "bye\n", ""},
			"environment":           {"", "echo $HOSTNAME", 0, "stream\n", ""},
		} {
			var out, errOut bytes.Buffer
			begin := time.Now()
			code, err := c.StreamExec(limit(t), tr, remotecommand.StreamOptions{Stdin: strings.NewReader(e.in), Stdout: &out, Stderr: &errOut}, "sh", "-c", e.script)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			equal(t, name+": code", code, e.code)
			equal(t, name+": stdout", out.String(), e.out)
			equal(t, name+": stderr", errOut.String(), e.errOut)
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("%s took %s", name, took)
			}
		}
		var out bytes.Buffer
		_, err := c.StreamExec(limit(t), tr, remotecommand.StreamOptions{Stdout: &out}, "/no/such/program")
		if err == nil {
			t.Error("a program that is not there was run")
		} else {
			contains(t, "error", err.Error(), "/no/such/program")
		}
	})
}

// sizeQueue tells sizes that are sent to it.
type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	if size, ok := <-q; ok {
		return &size
	}
	return nil
}

func TestExecWithATerminal(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("tty")).Start(k.Forever("main"))
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		c := withT(c, k)
		sizes := make(sizeQueue, 2)
		sizes <- remotecommand.TerminalSize{Width: 91, Height: 37}
		in, typed := io.Pipe()
		var out buffer
		done := make(chan error, 1)
		var code int
		go func() {
			var err error
			code, err = c.StreamExec(limit(t), tr, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: sizes},
				"sh", "-c", `stty size; trap 'echo now $(stty size)' WINCH; trap 'echo interrupted; exit 7' INT; echo TERM=$TERM ready; while :; do sleep 0.05; done`)
			done <- err
		}()
		out.await(t, "ready")
		if s := out.String(); !strings.HasPrefix(s, "37 91\r\n") {
			t.Errorf("the size at the start: %q", s)
		}
		sizes <- remotecommand.TerminalSize{Width: 44, Height: 22}
		out.await(t, "now 22 44")
		fmt.Fprint(typed, "\x03")
		if err := <-done; err != nil {
			t.Error(err)
		}
		close(sizes)
		typed.Close()
		equal(t, "code", code, 7)
		contains(t, "output", out.String(), "TERM=xterm", "interrupted")
	})
}

func TestAttachStreams(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("attach"))
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		p := &kubelet.Pod{Kubelet: k, ID: p.ID, Config: p.Config}
		once := k.Shell("once-"+string(tr), "echo before; cat; echo end >&2; exit 3")
		once.Stdin, once.StdinOnce = true, true
		c := p.Start(once)
		c.WaitOutput("before")
		var out, errOut, second buffer
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := c.Attach(limit(t), tr, remotecommand.StreamOptions{Stdout: &second}); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(300 * time.Millisecond) // the second client is attached by then
		if err := c.Attach(limit(t), tr, remotecommand.StreamOptions{Stdin: strings.NewReader("a line\n"), Stdout: &out, Stderr: &errOut}); err != nil {
			t.Error(err)
		}
		wg.Wait()
		equal(t, "stdout", out.String(), "a line\n")
		equal(t, "stderr", errOut.String(), "end\n")
		equal(t, "stdout of the second client", second.String(), "a line\n")
		equal(t, "exit code", c.WaitExit().ExitCode, 3)
		equal(t, "log", c.Output("stdout"), "before\na line\n")
	})
}
