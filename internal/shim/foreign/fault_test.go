// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shim/wire"
)

// fault is what a shim does instead of an answer.
type fault func(conn net.Conn, header []byte)

func dies(net.Conn, []byte) {}

func garbage(conn net.Conn, _ []byte) { _, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }

// nonsense is a well-formed answer with a payload that is no message.
func nonsense(conn net.Conn, header []byte) {
	reply(conn, header, &wire.Response{Payload: []byte{0xff, 0xff, 0xff}})
}

func huge(conn net.Conn, header []byte) {
	header[8] = responseFrame
	binary.BigEndian.PutUint32(header, 1<<31)
	_, _ = conn.Write(header)
}

func reply(conn net.Conn, header []byte, response *wire.Response) {
	body := wire.Marshal(response)
	binary.BigEndian.PutUint32(header, uint32(len(body)))
	header[8] = responseFrame
	_, _ = conn.Write(append(header, body...))
}

// ttrpc's frames.
const (
	headerSize    = 10
	responseFrame = 2
)

func readRequest(conn net.Conn) (header []byte, _ *wire.Request, err error) {
	header = make([]byte, headerSize)
	if _, err := io.ReadFull(conn, header); err != nil {
		return nil, nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(header))
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, nil, err
	}
	var request wire.Request
	return header, &request, wire.Unmarshal(body, &request)
}

// serveUntil is a shim that answers everything well but one method.
func serveUntil(l net.Listener, method string, f fault) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for {
				header, request, err := readRequest(conn)
				if err != nil {
					return
				}
				if request.Method == method {
					f(conn, header)
					return
				}
				reply(conn, header, &wire.Response{})
			}
		}()
	}
}

// faulty is a container of a shim that does f at a method; cleaned is a file that the shim's own program makes when it clears up.
func faulty(t *testing.T, method string, f fault) (p *standIn, cleaned string) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveUntil(l, method, f)
	cleaned = filepath.Join(dir, "cleaned")
	c := script(t, `for a; do last=$a; done; if [ $last = delete ]; then touch `+cleaned+`; else echo unix://`+dir+`/s; fi`)
	c.options["--bundle"] = bundle(t)
	return &standIn{command: c}, cleaned
}

func TestAShimThatFailsAtAnyStepOfAStartLeavesNothing(t *testing.T) {
	for name, f := range map[string]fault{"dies": dies, "garbage": garbage, "nonsense": nonsense, "huge": huge} {
		for _, method := range []string{"Create", "Connect", "Start"} {
			t.Run(name+" at "+method, func(t *testing.T) {
				p, cleaned := faulty(t, method, f)
				err := p.begin()
				if err == nil || !strings.Contains(err.Error(), method+":") {
					t.Fatalf("got %v", err)
				}
				if name == "dies" && !errors.Is(err, errGone) {
					t.Errorf("%v does not tell that the shim is gone", err)
				}
				if exists(p.dir()) {
					t.Error("the container's folder is left")
				}
				// A shim that still answers deletes by itself; else its program does.
				if l, err := net.Dial("unix", filepath.Join(filepath.Dir(cleaned), "s")); err != nil && !exists(cleaned) {
					t.Error("nobody cleared up")
				} else if err == nil {
					l.Close()
				}
			})
		}
	}
}

func TestAShimThatFailsLaterLosesItsContainer(t *testing.T) {
	for name, f := range map[string]fault{"dies": dies, "garbage": garbage, "nonsense": nonsense, "huge": huge} {
		t.Run(name, func(t *testing.T) {
			p, _ := faulty(t, "Wait", f)
			if err := p.begin(); err != nil {
				t.Fatal(err)
			}
			if code := p.end(); code != lostCode {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestAShimThatCannotDeleteIsClearedUpAfter(t *testing.T) {
	for name, f := range map[string]fault{"dies": dies, "garbage": garbage} {
		for _, method := range []string{"Kill", "Delete"} {
			t.Run(name+" at "+method, func(t *testing.T) {
				p, cleaned := faulty(t, method, f)
				if err := p.begin(); err != nil {
					t.Fatal(err)
				}
				c := *p.command
				c.verb, c.force = "delete", true
				if err := c.delete(); err != nil {
					t.Fatal(err)
				}
				if !exists(cleaned) || exists(c.dir()) {
					t.Errorf("cleared up %t, folder left %t", exists(cleaned), exists(c.dir()))
				}
				if err := c.delete(); err != nil { // again
					t.Error(err)
				}
			})
		}
	}
}

func TestAShimThatDoesNotAnswerIsGivenUp(t *testing.T) {
	p, _ := faulty(t, "Kill", func(conn net.Conn, _ []byte) { _, _ = conn.Read(make([]byte, 1)) })
	if err := p.begin(); err != nil {
		t.Fatal(err)
	}
	defer p.client.close()
	err := p.client.call(50*time.Millisecond, "Kill", &wire.KillRequest{ID: p.id}, &wire.Empty{})
	if err == nil || !strings.Contains(err.Error(), "does not answer") || errors.Is(err, errGone) {
		t.Errorf("got %v", err)
	}
}

func TestAShimsProgramThatIsGoneIsNamed(t *testing.T) {
	p, _ := faulty(t, "Start", dies)
	if err := os.Remove(p.shim); err != nil {
		t.Fatal(err)
	}
	if err := p.begin(); err == nil || !strings.Contains(err.Error(), p.shim) {
		t.Errorf("got %v", err)
	}
}

func TestAContainerGoesThoughItsShimAndTheShimsProgramBothFail(t *testing.T) {
	for name, words := range map[string]string{"refuses": "exit 3", "dies": "kill -9 $$"} {
		t.Run(name, func(t *testing.T) {
			p, _ := faulty(t, "Kill", garbage)
			if err := p.begin(); err != nil {
				t.Fatal(err)
			}
			shim := exec.Command("sleep", "1000")
			if err := shim.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- shim.Wait() }()
			me, ok := proc.Identify(shim.Process.Pid)
			if !ok {
				t.Fatal("the shim's process is not found")
			}
			p.state.ShimPID, p.state.ShimStart = me.PID, me.StartTime
			if err := errors.Join(p.save(p.state), os.WriteFile(p.shim, []byte("#!/bin/sh\n"+words+"\n"), 0o700)); err != nil {
				t.Fatal(err)
			}
			c := *p.command
			c.verb, c.force = "delete", true
			if err := c.delete(); err != nil {
				t.Fatal(err)
			}
			if exists(c.dir()) {
				t.Error("the container's folder is left")
			}
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Error("the shim is left")
			}
		})
	}
}

func TestAShimThatDoesNotCarryOutASIGKILLIsKilled(t *testing.T) {
	for name, f := range map[string]fault{"garbage": garbage, "dies": dies} {
		for _, method := range []string{"Kill", "Wait"} {
			t.Run(name+" at "+method, func(t *testing.T) {
				p, _ := faulty(t, method, f)
				if err := p.begin(); err != nil {
					t.Fatal(err)
				}
				shim := exec.Command("sh", "-c", "sleep 1000 & wait")
				if err := shim.Start(); err != nil {
					t.Fatal(err)
				}
				me, ok := proc.Identify(shim.Process.Pid)
				if !ok {
					t.Fatal("the shim's process is not found")
				}
				p.state.ShimPID, p.state.ShimStart = me.PID, me.StartTime
				if err := p.save(p.state); err != nil {
					t.Fatal(err)
				}
				c := *p.command
				c.verb, c.signal = "kill", 9
				if err := c.kill(); err != nil {
					t.Fatal(err)
				}
				if me.Runs() {
					t.Error("the shim still runs")
				}
				_ = shim.Wait() // it was killed
			})
		}
	}
}

func TestAShimThatNeverSaidWhoItIsIsFoundByItsCommandLine(t *testing.T) {
	c := script(t, "sleep 1000")
	c.id = "a-container-of-this-test"
	shim := exec.Command("/bin/sh")
	shim.Args = []string{c.shim, "-c", "sleep 1000; exit", "-id", c.id}
	if err := shim.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.killShim(state{}); err != nil {
		t.Fatal(err)
	}
	if err := shim.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the shim ends with %v", err)
	}
}
