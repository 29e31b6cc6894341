// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func pair(t *testing.T, network, address string) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func soon(f func() bool) bool {
	for range 200 {
		if f() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

func TestAHalfClosedUnixPeerIsStillThere(t *testing.T) {
	near, far := pair(t, "unix", filepath.Join(t.TempDir(), "s"))
	conn := near.(*net.UnixConn)
	if HungUp(conn) || Ended(conn) {
		t.Fatal("a new connection")
	}
	far.Write([]byte("unread"))
	far.(*net.UnixConn).CloseWrite()
	if !Ended(conn) || HungUp(conn) {
		t.Errorf("half closed: ended %v, hung up %v", Ended(conn), HungUp(conn))
	}
	far.Close()
	if !HungUp(conn) {
		t.Error("closed, with data unread: not hung up")
	}
}

func TestAGonePeerIsNoticedOverTCP(t *testing.T) {
	near, far := pair(t, "tcp", "127.0.0.1:0")
	conn := near.(*net.TCPConn)
	far.Write([]byte("unread"))
	if Ended(conn) {
		t.Fatal("a new connection")
	}
	far.Close()
	if !soon(func() bool { return Ended(conn) }) {
		t.Error("a closed peer, with data unread, is not noticed")
	}
	near.Close()
	if !HungUp(conn) || !Ended(conn) {
		t.Error("an own, closed connection counts as alive")
	}
}
