// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// serveInPod runs a server on the pod's localhost, a goroutine of this process for each connection, and returns its port.
func serveInPod(t *testing.T, p *kubelet.Pod, localhost string, serve func(*net.TCPConn)) int {
	t.Helper()
	var l net.Listener
	err := netns.Do(filepath.Join(p.D.Netns, "berth-"+p.ID), func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(localhost, "0"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func echo(conn *net.TCPConn) { io.Copy(conn, conn) }

// sum answers what came before the end with its hash.
func sum(conn *net.TCPConn) {
	h := sha256.New()
	if _, err := io.Copy(h, conn); err == nil {
		fmt.Fprintf(conn, "%x", h.Sum(nil))
	}
}

func dialLocal(t *testing.T, f *kubelet.Forward) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", f.Local)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

func TestPortForward(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("forward"))
	sums, echoes := serveInPod(t, p, "127.0.0.1", sum), serveInPod(t, p, "::1", echo)
	loops := size(t, "BERTH_TEST_LOOPS", 20)
	greets := serveInPod(t, p, "127.0.0.1", func(conn *net.TCPConn) { io.WriteString(conn, "hello\n") })
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		p := &kubelet.Pod{Kubelet: k, ID: p.ID, Config: p.Config}
		greet, err := p.Forward(tr, greets)
		if err != nil {
			t.Fatal(err)
		}
		for range loops { // the pod ends first
			conn := dialLocal(t, greet)
			if got, err := io.ReadAll(conn); err != nil || string(got) != "hello\n" {
				t.Errorf("got %q, %v", got, err)
			}
			conn.Close()
		}
		greet.Stop()
		sum, err := p.Forward(tr, sums)
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("0123456789abcdef"), 20000)
		for range loops { // the client ends first, and hears what the pod makes of it
			conn := dialLocal(t, sum)
			conn.Write(data)
			conn.CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || string(got) != fmt.Sprintf("%x", sha256.Sum256(data)) {
				t.Errorf("got %q, %v", got, err)
			}
			conn.Close()
		}
		for range loops { // a connection that breaks takes no other with it
			conn := dialLocal(t, sum)
			conn.Write(data)
			conn.SetLinger(0)
			conn.Close()
		}
		last := dialLocal(t, sum)
		last.CloseWrite()
		if got, err := io.ReadAll(last); err != nil || string(got) != fmt.Sprintf("%x", sha256.Sum256(nil)) {
			t.Errorf("after those that broke: %q, %v", got, err)
		}
		last.Close()
		sum.Stop()
		echo, err := p.Forward(tr, echoes)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				conn, err := net.Dial("tcp", echo.Local)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(60 * time.Second))
				want := strings.Repeat(fmt.Sprintf("%03d", i), 5000)
				go func() { io.WriteString(conn, want); conn.(*net.TCPConn).CloseWrite() }()
				if got, err := io.ReadAll(conn); err != nil || string(got) != want {
					t.Errorf("connection %d: %d bytes, %v", i, len(got), err)
				}
			})
		}
		wg.Wait()
		echo.Stop()
		closed, err := p.Forward(tr, 9999)
		if err != nil {
			t.Fatal(err)
		}
		conn := dialLocal(t, closed)
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Error("a port that nobody listens on answers")
		}
		conn.Close()
		closed.Stop()
	})
}

func TestAResetEndsItsOwnConnectionOnly(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("reset"))
	port := serveInPod(t, p, "127.0.0.1", func(conn *net.TCPConn) {
		var first [1]byte
		if _, err := io.ReadFull(conn, first[:]); err == nil && first[0] == 'r' {
			conn.SetLinger(0)
			return
		}
		echo(conn)
	})
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		f, err := (&kubelet.Pod{Kubelet: k, ID: p.ID, Config: p.Config}).Forward(tr, port)
		if err != nil {
			t.Fatal(err)
		}
		long := dialLocal(t, f)
		defer long.Close()
		fmt.Fprint(long, "e")
		for i := range 100 {
			conn := dialLocal(t, f)
			fmt.Fprint(conn, "r"+strings.Repeat("x", 100000)) // much of which nobody reads
			if i%2 == 0 {
				conn.SetLinger(0)
			} else if got, _ := io.ReadAll(conn); len(got) > 0 {
				t.Errorf("a connection that was reset brought %d bytes", len(got))
			}
			conn.Close()
		}
		fmt.Fprint(long, "still there")
		long.CloseWrite()
		if got, err := io.ReadAll(long); err != nil || string(got) != "still there" {
			t.Errorf("the connection beside them: %q, %v", got, err)
		}
		f.Stop()
	})
}

func TestPortForwardToAPodOnTheHostsNetwork(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config := k.PodConfig("host")
	config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	config.Hostname = ""
	p := k.RunPod(config)
	l, err := net.Listen("tcp", "[::1]:0") // IPv6 only
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "from the host")
			conn.Close()
		}
	}()
	f, err := p.Forward(kubelet.SPDY, l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatal(err)
	}
	conn := dialLocal(t, f)
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "from the host" {
		t.Errorf("got %q, %v", got, err)
	}
	conn.Close()
	f.Stop()
	_, err = k.D.Runtime.PortForward(k.Ctx(), &cri.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{70000}})
	wantError(t, err, invalid, "70000")
}

// TestMuchThroughAPortForward downloads BERTH_TEST_STREAM_MIB through the session and beside it.
func TestMuchThroughAPortForward(t *testing.T) {
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("much"))
	mib := size(t, "BERTH_TEST_STREAM_MIB", 64)
	source := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), int64(mib)<<20) }
	want := sha256.New()
	if _, err := io.Copy(want, source()); err != nil {
		t.Fatal(err)
	}
	port := serveInPod(t, p, "127.0.0.1", func(conn *net.TCPConn) { io.Copy(conn, source()) })
	direct := serveInPod(t, p, p.IP(), func(conn *net.TCPConn) { io.Copy(conn, source()) })
	fetch := func(what, address string) {
		begin, got := time.Now(), sha256.New()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		n, err := io.Copy(got, conn)
		if err != nil || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("%s: %d bytes, %v", what, n, err)
		}
		t.Logf("%s: %d MiB in %s", what, mib, time.Since(begin).Round(time.Millisecond))
	}
	fetch("direct", net.JoinHostPort(p.IP(), fmt.Sprint(direct)))
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		f, err := (&kubelet.Pod{Kubelet: k, ID: p.ID, Config: p.Config}).Forward(tr, port)
		if err != nil {
			t.Fatal(err)
		}
		fetch(string(tr), f.Local)
		f.Stop()
		t.Logf("daemon %.1f MiB", resident(t, k.D.PID()))
	})
}
