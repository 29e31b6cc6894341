// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/tools/remotecommand"
)

// FuzzWebSocketMessages lets a client with a good token say what it likes: its session ends with it, whatever that was.
func FuzzWebSocketMessages(f *testing.F) {
	f.Add(uint8(0), false, []byte("\x00input"), []byte("\x04{\"Width\":80,\"Height\":24}"), []byte("\xff\x00"))
	f.Add(uint8(1), true, []byte("\x00input"), []byte("\x04{\"Width\":70000}"), []byte("\xff"))
	f.Add(uint8(2), false, []byte("0aW5wdXQ="), []byte("4e30="), []byte("0"))
	f.Add(uint8(4), true, []byte("0=!"), []byte(""), []byte("\x09\x00"))
	f.Fuzz(func(t *testing.T, protocol uint8, tty bool, first, second, third []byte) {
		s := start(t, nil)
		o := remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard, Tty: tty}
		dialer := websocket.Dialer{Subprotocols: []string{webSocketProtocols[int(protocol)%len(webSocketProtocols)]}}
		client, answer, err := dialer.Dial("ws"+strings.TrimPrefix(s.exec(o, "cat"), "http"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		defer answer.Body.Close()
		for _, message := range [][]byte{first, second, third} {
			if client.WriteMessage(websocket.BinaryMessage, message) != nil {
				break // it has hung up on us
			}
		}
		client.Close()
		s.awaitNone()
	})
}

// FuzzSession sends bytes where a SPDY session or a WebSocket should begin.
func FuzzSession(f *testing.F) {
	f.Add(false, []byte("\x80\x03\x00\x01\x01\x00\x00\x12\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x38\xea\xdf\xa2\x51\xb2"))
	f.Add(true, []byte("\x82\x85\x01\x02\x03\x04\x01hell"))
	f.Add(false, []byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, ws bool, data []byte) {
		s := start(t, func(c *Config) { c.CreationTimeout = 50 * time.Millisecond })
		header := "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
		if ws {
			header = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
		}
		at := s.exec(remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard}, "cat")
		client, err := net.Dial("tcp", s.base.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		fmt.Fprintf(client, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n%s\r\n", strings.TrimPrefix(at, s.URL()), header)
		if _, err := client.Write(data); err != nil {
			return // it has hung up on us
		}
		client.Close()
		s.awaitNone()
	})
}

// FuzzRequest sends bytes where a request should begin: whoever has no token gets no session.
func FuzzRequest(f *testing.F) {
	f.Add("/exec/x", "websocket", "v5.channel.k8s.io")
	f.Add("/portforward/", "SPDY/3.1", "SPDY/3.1+portforward.k8s.io")
	f.Fuzz(func(t *testing.T, path, upgrade, protocol string) {
		s := start(t, nil)
		s.exec(remotecommand.StreamOptions{Stdout: io.Discard}, "code")
		client, err := net.Dial("tcp", s.base.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		fmt.Fprintf(client, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Protocol: %s\r\n\r\n", path, upgrade, protocol)
		if err := client.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(client)
		if err == nil && strings.HasPrefix(string(answer), fmt.Sprintf("HTTP/1.1 %d", http.StatusSwitchingProtocols)) {
			t.Fatalf("a session without a token: %q", answer)
		}
		s.awaitNone()
	})
}

// awaitNone waits until no session is left.
func (s *testServer) awaitNone() {
	s.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		n := s.sessions
		s.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%d sessions are left", n)
		}
	}
}
