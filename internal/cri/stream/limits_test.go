// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	clientforward "k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berth-run/berth/test/transcript"
)

func TestAnExpiredTokenIsAsUnknownAsAWrongOne(t *testing.T) {
	s := start(t, nil)
	at := s.exec(remotecommand.StreamOptions{Stdout: io.Discard}, "code")
	s.tokens.mu.Lock()
	for token, w := range s.tokens.waiting {
		w.until = time.Now().Add(-time.Second)
		s.tokens.waiting[token] = w
	}
	s.tokens.mu.Unlock()
	for range 2 {
		if code, text := s.get("POST", at, upgradeHeaders...); code != http.StatusNotFound || !strings.Contains(text, "within a minute") {
			t.Errorf("%d %s", code, text)
		}
	}
}

func TestIdleSessionsAreEnded(t *testing.T) {
	for name := range transports {
		t.Run(name, func(t *testing.T) {
			s := start(t, func(c *Config) { c.IdleTimeout = 300 * time.Millisecond })
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			at := s.exec(remotecommand.StreamOptions{Stdout: io.Discard}, "wait")
			done := make(chan error, 1)
			go func() { _, err := stream(ctx, name, at, remotecommand.StreamOptions{Stdout: io.Discard}); done <- err }()
			<-s.pods.entered
			if err := <-done; err == nil || !strings.Contains(err.Error(), "idle_timeout") {
				t.Errorf("the client heard %v", err)
			}
			<-s.pods.ended
		})
	}
}

// link is a client's session: client-go and the server's library have a type each.
type link struct {
	create func(http.Header) (io.ReadWriteCloser, error)
	closed <-chan bool
	close  func() error
}

func linkOf(conn httpstream.Connection) link {
	return link{func(h http.Header) (io.ReadWriteCloser, error) { return conn.CreateStream(h) }, conn.CloseChan(), conn.Close}
}

// forwardings are the ways to a port-forward session.
var forwardings = map[string]func(s *testServer, at string) link{
	"spdy": func(s *testServer, at string) link { return linkOf(s.dialSPDY(at, "portforward.k8s.io")) },
	"spdy in a websocket": func(s *testServer, at string) link {
		u, err := url.Parse(at)
		if err != nil {
			s.Fatal(err)
		}
		dialer, err := clientforward.NewSPDYOverWebsocketDialer(u, &rest.Config{})
		if err != nil {
			s.Fatal(err)
		}
		conn, _, err := dialer.Dial("portforward.k8s.io")
		if err != nil {
			s.Fatal(err)
		}
		return link{func(h http.Header) (io.ReadWriteCloser, error) { return conn.CreateStream(h) }, conn.CloseChan(), conn.Close}
	},
}

func TestIdlePortForwardsAreEndedWithAWord(t *testing.T) {
	for name, dial := range forwardings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log transcript.Text
			const limit = 3 * time.Second // long enough for what comes first
			s := start(t, func(c *Config) { c.IdleTimeout, c.Log = limit, slog.New(slog.NewTextHandler(&log, nil)) })
			at, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
			if err != nil {
				t.Fatal(err)
			}
			conn := dial(s, at)
			defer conn.close()
			data, errs := s.forwardPair(conn, "1", "7")
			time.Sleep(limit / 3)
			moved := time.Now()
			fmt.Fprint(data, "x")
			if _, err := io.ReadFull(data, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if got, _ := io.ReadAll(errs); !strings.Contains(string(got), "idle_timeout") {
				t.Errorf("the client heard %q", got)
			}
			if since := time.Since(moved); since < limit {
				t.Errorf("it was ended %s after something was sent", since)
			}
			select {
			case <-conn.closed:
			case <-time.After(10 * time.Second):
				t.Error("the session goes on")
			}
			if got := log.String(); !strings.Contains(got, "idle streaming session") || !strings.Contains(got, "session=port-forward of=p") {
				t.Errorf("log: %s", got)
			}
		})
	}
}

// certificate writes one for the loopback address, with its key, and returns the pool that trusts it.
func certificate(t *testing.T, dir string, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: cert}, "key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return pool
}

// serial is that of the certificate that the server shows.
func (s *testServer) serial(pool *x509.CertPool) (int64, error) {
	conn, err := tls.Dial("tcp", s.base.Host, &tls.Config{RootCAs: pool})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
}

func TestTLSAnswersPlainHTTPAndTakesNewCertificates(t *testing.T) {
	dir := t.TempDir()
	pool := certificate(t, dir, 1)
	s := start(t, func(c *Config) { c.CertFile, c.KeyFile = filepath.Join(dir, "cert"), filepath.Join(dir, "key") })
	if !strings.HasPrefix(s.URL(), "https://") {
		t.Fatal(s.URL())
	}
	plain := "http" + strings.TrimPrefix(s.exec(remotecommand.StreamOptions{Stdout: io.Discard}, "code"), "https")
	if code, text := s.get("POST", plain, upgradeHeaders...); code != http.StatusBadRequest || !strings.Contains(text, "HTTPS server") {
		t.Errorf("plain HTTP: %d %s", code, text)
	}
	if n, err := s.serial(pool); n != 1 || err != nil {
		t.Errorf("certificate %d, %v", n, err)
	}
	// What cannot be read leaves the certificate in force.
	if err := os.WriteFile(filepath.Join(dir, "cert"), []byte("half of a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := s.serial(pool); n != 1 || err != nil {
		t.Errorf("with a broken file: certificate %d, %v", n, err)
	}
	renewed := certificate(t, dir, 2)
	if n, err := s.serial(renewed); n != 2 || err != nil {
		t.Errorf("renewed: certificate %d, %v", n, err)
	}
}
