// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// brokenConn is a plugin's connection, on which its next answer is not what the plugin gave, from when it is armed.
type brokenConn struct {
	net.Conn
	mu     sync.Mutex
	broken string
	buf    []byte
}

func (c *brokenConn) arm(how string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = how
}

// The library's frames: a connection's number and a length; in them ttrpc's: a length, a stream's number, a kind and flags.
const (
	muxHead, ttrpcHead, ttrpcKind = 8, 10, 8
	ttrpcResponse                 = 2
)

// Write passes whole frames on, changed or not.
func (c *brokenConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, b...)
	for len(c.buf) >= muxHead {
		size := muxHead + int(binary.BigEndian.Uint32(c.buf[4:]))
		if len(c.buf) < size {
			break
		}
		frame := slices.Clone(c.buf[:size])
		c.buf = c.buf[size:]
		if len(frame) >= muxHead+ttrpcHead && frame[muxHead+ttrpcKind] == ttrpcResponse {
			frame = c.spoil(frame)
		}
		if _, err := c.Conn.Write(frame); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (c *brokenConn) spoil(frame []byte) []byte {
	head, junk := frame[:muxHead+ttrpcHead], []byte{0x0a, 0xff, 0xff, 0xff}
	with := func(body []byte) []byte {
		binary.BigEndian.PutUint32(head[4:], uint32(ttrpcHead+len(body)))
		binary.BigEndian.PutUint32(head[muxHead:], uint32(len(body)))
		return append(head, body...)
	}
	switch c.broken {
	case "garbage":
		return []byte(strings.Repeat("\xff", 64))
	case "no message":
		return with(junk)
	case "no answer":
		body, err := proto.Marshal(&ttrpc.Response{Payload: junk})
		if err != nil {
			panic(err)
		}
		return with(body)
	case "no kind":
		frame[muxHead+ttrpcKind] = 77
	}
	return frame
}

// hooks are all that plugins are told, by what the plugin of these tests calls it.
var hooks = []struct {
	event   string
	refused bool // it may be
	do      func(t *testing.T, n *NRI) error
}{
	{"run", true, func(t *testing.T, n *NRI) error { return n.Ask(t.Context(), RunSandbox, testPod, nil) }},
	{"update", true, func(t *testing.T, n *NRI) error {
		return n.UpdateSandbox(t.Context(), testPod, nil, &runtimeapi.LinuxContainerResources{CpuShares: 2})
	}},
	{"updated", false, tell(PostUpdateSandbox)},
	{"stop", false, tell(StopSandbox)},
	{"remove", false, tell(RemoveSandbox)},
	{"create", true, func(t *testing.T, n *NRI) error {
		_, err := n.CreateContainer(t.Context(), testPod, testContainer)
		return err
	}},
	{"created", false, tell(PostCreateContainer)},
	{"start", true, func(t *testing.T, n *NRI) error {
		return n.Ask(t.Context(), StartContainer, testPod, &testContainer)
	}},
	{"started", false, tell(PostStartContainer)},
	{"update container", true, func(t *testing.T, n *NRI) error {
		_, _, err := n.UpdateContainer(t.Context(), testPod, testContainer, &runtimeapi.LinuxContainerResources{CpuShares: 2})
		return err
	}},
	{"updated container", false, tell(PostUpdateContainer)},
	{"stop container", false, func(t *testing.T, n *NRI) error {
		n.StopContainer(t.Context(), testPod, testContainer)
		return nil
	}},
	{"remove container", false, tell(RemoveContainer)},
}

func tell(e Event) func(t *testing.T, n *NRI) error {
	return func(t *testing.T, n *NRI) error {
		n.Tell(t.Context(), e, testPod, &testContainer)
		return nil
	}
}

const patience = 20 * time.Second

// afterAFailure gives plugins their time back when the log tells that one has failed: what is called after that one shall not hurry.
type afterAFailure struct{ slog.Handler }

func (afterAFailure) Enabled(context.Context, slog.Level) bool { return true }

func (afterAFailure) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "closing plugin") || strings.Contains(r.Message, "fails to hear") {
		adaptation.SetPluginRequestTimeout(patience)
	}
	return nil
}

func (h afterAFailure) WithAttrs([]slog.Attr) slog.Handler { return h }

// TestAPluginMayFailAtEveryHook: in each way, whether somebody needs it or not. Requests fail for a plugin that is required, by the configuration or by its own
// word, or that says no, where there is anything to refuse. What does not answer is dropped; other plugins are told as ever.
func TestAPluginMayFailAtEveryHook(t *testing.T) {
	for _, policy := range []string{"other", "required", "by its own word"} {
		for _, fault := range []string{"hangs", "crashes", "garbage", "no message", "no answer", "no kind", "refuses"} {
			t.Run(policy+" "+fault, func(t *testing.T) {
				cfg := Config{RegistrationTimeout: 20 * time.Second, RequestTimeout: patience}
				if policy == "required" {
					cfg.Required = []string{"bad"}
				}
				n, _ := startLogged(t, cfg, afterAFailure{slog.DiscardHandler})
				after := n.connect(t, "20", "after")
				for _, h := range hooks {
					failAt(t, n, after, h.event, fault, policy, h.refused, h.do)
				}
			})
		}
	}
}

func failAt(t *testing.T, n *NRI, after *plugin, event, fault, policy string, refused bool, do func(t *testing.T, n *NRI) error) {
	conn, err := net.Dial("unix", n.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	broken := &brokenConn{Conn: conn}
	options := []stub.Option{stub.WithConnection(broken)}
	if policy == "by its own word" {
		options = append(options, stub.WithFailurePolicy(&api.FailurePolicy{FailRequest: true}))
	}
	bad, count := n.connect(t, "10", "bad", options...), n.plugins.Load()
	release := make(chan struct{})
	defer close(release)
	bad.setAnswer(func(got string) error {
		switch {
		case got != event:
		case fault == "hangs":
			<-release
		case fault == "crashes":
			conn.Close()
		case fault == "refuses":
			return errors.New("not on my node")
		default:
			broken.arm(fault)
		}
		return nil
	})
	if fault == "hangs" {
		adaptation.SetPluginRequestTimeout(100 * time.Millisecond)
		defer adaptation.SetPluginRequestTimeout(patience)
	}
	heard := len(after.told())
	err = do(t, n)
	var want error
	switch {
	case refused && fault == "refuses":
		want = ErrRefused
	case refused && policy != "other":
		want = ErrRequired
	}
	if !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), "not on my node") && !strings.Contains(err.Error(), "10-bad") {
		t.Errorf("%s: got %v, want %v, with the plugin's name or words", event, err, want)
	}
	if now := n.plugins.Load(); fault != "refuses" && (refused || policy != "by its own word") && now != count-1 {
		t.Errorf("%s: the plugin is not dropped: there are %d, were %d", event, now, count)
	}
	if !slices.Contains(after.told()[heard:], event) && (want == nil || policy == "required" && fault != "refuses") {
		t.Errorf("%s: the plugin after it was not told: %q", event, after.told()[heard:])
	}
	if fault == "refuses" {
		bad.stub.Stop()
	}
	defer bad.stub.Stop()
	eventually(t, "the plugin is gone", func() bool {
		n.Tell(t.Context(), PostUpdateSandbox, Pod{}, nil) // the library looks after its plugins at the end of each request
		return n.plugins.Load() == count-1
	})
}
