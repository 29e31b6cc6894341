// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// oneConnection is a listener for a connection that somebody else accepted.
type oneConnection struct {
	conn chan net.Conn
	*net.TCPConn
}

func (l oneConnection) Accept() (net.Conn, error) {
	conn, ok := <-l.conn
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (l oneConnection) Addr() net.Addr { return l.LocalAddr() }
func (oneConnection) Close() error     { return nil }

// serveHTTP answers the requests of one connection until it ends.
func serveHTTP(conn *net.TCPConn, handler http.Handler) {
	l := oneConnection{make(chan net.Conn, 1), conn}
	l.conn <- conn
	server := &http.Server{Handler: handler, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			close(l.conn)
		}
	}}
	_ = server.Serve(l) // net.ErrClosed, when the connection has ended
}

// A client that keeps its connection alive uses one for all its requests.
func TestHTTPKeepAliveThroughAPortForward(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("http"))
	var connections atomic.Int32
	port := serveInPod(t, p, "127.0.0.1", func(conn *net.TCPConn) {
		connections.Add(1)
		serveHTTP(conn, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				data, err := io.ReadAll(r.Body) // all of it, before the answer begins: HTTP/1 knows no other order
				if err != nil {
					w.WriteHeader(http.StatusBadRequest)
				}
				w.Write(data)
				return
			}
			n, _ := strconv.Atoi(r.URL.Query().Get("chunks"))
			for i := range n {
				fmt.Fprintf(w, "chunk %d\n", i)
				w.(http.Flusher).Flush()
			}
		}))
	})
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		f, err := (&kubelet.Pod{Kubelet: k, ID: p.ID, Config: p.Config}).Forward(tr, port)
		if err != nil {
			t.Fatal(err)
		}
		before := connections.Load()
		transport := &http.Transport{MaxConnsPerHost: 1}
		client := http.Client{Transport: transport, Timeout: time.Minute}
		ask := func(method, path, body string) string {
			t.Helper()
			q, err := http.NewRequestWithContext(t.Context(), method, "http://"+f.Local+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r, err := client.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			data, err := io.ReadAll(r.Body)
			if err != nil || r.StatusCode != http.StatusOK {
				t.Fatalf("%s, %v", r.Status, err)
			}
			return string(data)
		}
		for i := range size(t, "BERTH_TEST_LOOPS", 20) {
			equal(t, "chunks", strings.Count(ask(http.MethodGet, fmt.Sprintf("/?chunks=%d", i), ""), "\n"), i)
			sent := strings.Repeat(fmt.Sprint(i), 1<<(i%18))
			if got := ask(http.MethodPost, "/", sent); got != sent {
				t.Errorf("request %d: %d bytes came back, %d were sent", i, len(got), len(sent))
			}
		}
		equal(t, "connections for all requests", connections.Load()-before, 1)
		transport.CloseIdleConnections()
		f.Stop()
	})
}

// A message as PostgreSQL's: a type and a length, then what it says.
func send(conn net.Conn, kind byte, text string) error {
	m := append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(text))), text...)
	_, err := conn.Write(m)
	return err
}

func receive(conn net.Conn) (kind byte, text string, err error) {
	var head [5]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return 0, "", err
	}
	data := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err = io.ReadFull(conn, data)
	return head[0], string(data), err
}

// database answers queries until the client says goodbye, and does to some what databases do: it ends the session with a last word, or
// breaks it.
func database(conn *net.TCPConn) {
	for {
		kind, text, err := receive(conn)
		switch {
		case err != nil || kind == 'X':
			return
		case text == "fatal":
			_ = send(conn, 'E', "terminating connection due to administrator command")
			return
		case text == "crash":
			_ = send(conn, 'D', strings.Repeat("half a row", 1000))
			conn.SetLinger(0)
			return
		case text == "big":
			err = send(conn, 'D', strings.Repeat("x", 4<<20))
		default:
			err = send(conn, 'D', text+strings.Repeat(".", 10000))
		}
		if err != nil {
			return
		}
	}
}

func query(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if err := send(conn, 'Q', text); err != nil {
		t.Fatal(err)
	}
	if kind, got, err := receive(conn); err != nil || kind != 'D' || !strings.HasPrefix(got, text) {
		t.Fatalf("answer to %q: %c, %d bytes, %v", text, kind, len(got), err)
	}
}

// Clients and servers of a database end their connections in all the ways that there are, through one session, beside a connection that
// must not notice. The ones that broke took the whole session along with other runtimes.
func TestADatabaseThroughAPortForward(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("database"))
	var open atomic.Int32
	port := serveInPod(t, p, "127.0.0.1", func(conn *net.TCPConn) {
		open.Add(1)
		defer open.Add(-1)
		database(conn)
	})
	ends := map[string]func(*testing.T, *net.TCPConn){
		"the client says goodbye and half-closes": func(t *testing.T, conn *net.TCPConn) {
			query(t, conn, "select 1")
			if err := errors.Join(send(conn, 'X', ""), conn.CloseWrite()); err != nil {
				t.Error(err)
			}
			if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
				t.Errorf("after goodbye: %q, %v", rest, err)
			}
		},
		"the client half-closes without a word, with an answer on its way": func(t *testing.T, conn *net.TCPConn) {
			if err := errors.Join(send(conn, 'Q', "big"), conn.CloseWrite()); err != nil {
				t.Error(err)
			}
			if got, err := io.Copy(io.Discard, conn); err != nil || got != 5+4<<20 {
				t.Errorf("%d bytes of the answer, %v", got, err)
			}
		},
		"the server ends with a last word": func(t *testing.T, conn *net.TCPConn) {
			if err := send(conn, 'Q', "fatal"); err != nil {
				t.Error(err)
			}
			if got, err := io.ReadAll(conn); err != nil || !bytes.Contains(got, []byte("administrator command")) {
				t.Errorf("last word: %q, %v", got, err)
			}
		},
		"the client breaks it in the middle of an answer": func(t *testing.T, conn *net.TCPConn) {
			if err := send(conn, 'Q', "big"); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil {
				t.Error(err)
			}
			conn.SetLinger(0)
		},
		"the server breaks it": func(t *testing.T, conn *net.TCPConn) {
			if err := send(conn, 'Q', "crash"); err != nil {
				t.Error(err)
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the client is not told: %v", err)
			}
		},
	}
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		f, err := (&kubelet.Pod{Kubelet: k, ID: p.ID, Config: p.Config}).Forward(tr, port)
		if err != nil {
			t.Fatal(err)
		}
		long := dialLocal(t, f)
		for i := range size(t, "BERTH_TEST_LOOPS", 20) {
			for name, end := range ends {
				conn := dialLocal(t, f)
				query(t, conn, name)
				end(t, conn)
				conn.Close()
			}
			query(t, long, fmt.Sprintf("loop %d", i))
			if err := long.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		long.Close()
		kubelet.Eventually(t, 20*time.Second, func() string {
			if n := open.Load(); n > 0 {
				return fmt.Sprintf("%d connections are still open in the pod", n)
			}
			return ""
		})
		f.Stop()
	})
}
