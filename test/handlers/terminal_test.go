// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"

	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/transcript"
)

// screen collects what a terminal shows.
type screen struct{ transcript.Text }

func (s *screen) await(t *testing.T, want string) {
	t.Helper()
	kubelet.Eventually(t, 30*time.Second, func() string {
		if got := s.String(); !strings.Contains(got, want) {
			return fmt.Sprintf("the screen has no %q: %q", want, got)
		}
		return ""
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

// terminal is a client's session with one.
type terminal struct {
	screen
	sizes sizeQueue
	typed *io.PipeWriter
	code  int
	done  chan error
}

// open runs a session of 91 columns and 37 rows.
func open(session func(remotecommand.StreamOptions) (int, error)) *terminal {
	c := &terminal{sizes: make(sizeQueue, 2), done: make(chan error, 1)}
	c.sizes <- remotecommand.TerminalSize{Width: 91, Height: 37}
	in, typed := io.Pipe()
	c.typed = typed
	go func() {
		var err error
		c.code, err = session(remotecommand.StreamOptions{Stdin: in, Stdout: &c.screen, Tty: true, TerminalSizeQueue: c.sizes})
		c.done <- err
	}()
	return c
}

func (c *terminal) end(t *testing.T) {
	t.Helper()
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	close(c.sizes)
	c.typed.Close()
}

// shows answers what is typed with the terminal's size, and tells of new ones by itself.
const shows = `stty size; trap 'echo now $(stty size)' WINCH; trap 'echo interrupted; exit 7' INT; echo TERM=$TERM ready; ` +
	`while :; do read -t 1 line || continue; [ "$line" = bye ] && exit 7; echo "$line $(stty size)"; done`

// type types a line until the screen shows something.
func (c *terminal) typeUntil(t *testing.T, line, want string) {
	t.Helper()
	kubelet.Eventually(t, 30*time.Second, func() string {
		fmt.Fprint(c.typed, line+"\r")
		time.Sleep(200 * time.Millisecond)
		if got := c.String(); !strings.Contains(got, want) {
			return fmt.Sprintf("the screen has no %q: %q", want, got)
		}
		return ""
	})
}

// resize sets a size and waits until the command sees it: gVisor has no signal for it, and no size at the very start.
func (c *terminal) resize(t *testing.T, h handler, width, height uint16) {
	t.Helper()
	c.sizes <- remotecommand.TerminalSize{Width: width, Height: height}
	if want := fmt.Sprintf(" %d %d\r\n", height, width); h.gvisor {
		c.typeUntil(t, "asked", "asked"+want)
	} else {
		c.await(t, "now"+want)
	}
}

func TestExecWithATerminal(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		c := k.RunPod(k.PodConfig("pod")).Start(k.Forever("main"))
		for _, tr := range kubelet.Transports {
			tty := open(func(o remotecommand.StreamOptions) (int, error) {
				return c.StreamExec(limit(t), tr, o, "sh", "-c", shows)
			})
			tty.await(t, "ready\r\n")
			if s := tty.String(); !h.gvisor && !strings.HasPrefix(s, "37 91\r\n") {
				t.Errorf("%s: the size at the start: %q", tr, s)
			}
			tty.typeUntil(t, "first", "first 37 91\r\n")
			tty.resize(t, h, 44, 22)
			fmt.Fprint(tty.typed, "\x03")
			tty.end(t)
			if s := tty.String(); tty.code != 7 || !strings.Contains(s, "TERM=xterm") || !strings.HasSuffix(s, "interrupted\r\n") {
				t.Errorf("%s: code %d, %q", tr, tty.code, s)
			}
		}
		// All of it arrives before the end, however fast that comes; and what is in the background holds up nobody.
		var out screen
		code, err := c.StreamExec(limit(t), kubelet.SPDY, remotecommand.StreamOptions{Stdout: &out, Tty: true}, "sh", "-c",
			`i=0; while [ $i -lt 5000 ]; do echo "line $i of many"; i=$((i+1)); done; exit 5`)
		if lines := strings.Count(out.String(), "\r\n"); err != nil || code != 5 || lines != 5000 || !strings.HasSuffix(out.String(), "line 4999 of many\r\n") {
			t.Errorf("code %d, %v, %d lines", code, err, lines)
		}
	})
}

func TestAttachToATerminal(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		config := k.Shell("main", shows)
		config.Stdin, config.Tty = true, true
		c := k.RunPod(k.PodConfig("pod")).Start(config)
		attach := func(tr kubelet.Transport) *terminal {
			return open(func(o remotecommand.StreamOptions) (int, error) { return 0, c.Attach(limit(t), tr, o) })
		}
		first := attach(kubelet.SPDY)
		first.typeUntil(t, "first", "first 37 91\r\n")
		watch, leave := context.WithCancel(limit(t))
		defer leave()
		var second screen
		left := make(chan error, 1)
		go func() {
			left <- c.Attach(watch, kubelet.WebSocket, remotecommand.StreamOptions{Stdout: &second, Tty: true})
		}()
		// The second client is there when it sees what the first one types.
		kubelet.Eventually(t, 30*time.Second, func() string {
			fmt.Fprint(first.typed, "both\r")
			time.Sleep(200 * time.Millisecond)
			if !strings.Contains(second.String(), "both 37 91\r\n") {
				return "the second client sees " + second.String()
			}
			return ""
		})
		leave()
		<-left
		first.resize(t, h, 44, 22)
		if err := k.D.Kill(); err != nil {
			t.Fatal(err)
		}
		<-first.done
		if err := k.D.Launch(k.Ctx()); err != nil {
			t.Fatal(err)
		}
		third := attach(kubelet.WebSocket)
		third.typeUntil(t, "third", "third 37 91\r\n")
		end, last := "\x03", "interrupted\r\n"
		if h.gvisor { // its terminals send a container's first process no signals
			end, last = "bye\r", "bye\r\n"
		}
		fmt.Fprint(third.typed, end)
		third.end(t)
		third.await(t, last)
		if st := c.WaitExit(); st.ExitCode != 7 {
			t.Errorf("exit code %d", st.ExitCode)
		}
		if log := c.Output("stdout"); !strings.Contains(log, "third 37 91\r\n") || !strings.HasSuffix(log, last) {
			t.Errorf("log: %q", log)
		}
	})
}

// TestShortInputs is about inputs that are at their end before the command has begun.
func TestShortInputs(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		c := k.RunPod(k.PodConfig("pod")).Start(k.Forever("main"))
		for i := range 10 {
			var out bytes.Buffer
			want := fmt.Sprintf("input %d", i)
			code, err := c.StreamExec(limit(t), kubelet.Transports[i%2], remotecommand.StreamOptions{Stdin: strings.NewReader(want), Stdout: &out}, "cat")
			if err != nil || code != 0 || out.String() != want {
				t.Errorf("code %d, %v, %q", code, err, out.String())
			}
		}
		begin := time.Now()
		code, err := c.StreamExec(limit(t), kubelet.SPDY, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard}, "sh", "-c", "sleep 100 & exit 3")
		if took := time.Since(begin); err != nil || code != 3 || took > 20*time.Second {
			t.Errorf("a command with a child in the background: code %d after %s, %v", code, took, err)
		} else {
			t.Logf("a command with a child in the background ends after %s", took)
		}
	})
}
