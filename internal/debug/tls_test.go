// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/telemetry"
)

// authority makes certificates that it vouches for.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.make("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// make writes NAME.pem and NAME.key.
func (a *authority) make(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: raw}, ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(a.file(name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// client trusts the authority, and shows a certificate if it has one.
func (a *authority) client(shows ...tls.Certificate) *http.Client {
	a.t.Helper()
	trusted := x509.NewCertPool()
	trusted.AddCert(a.cert)
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted, Certificates: shows, MinVersion: tls.VersionTLS12}}}
	a.t.Cleanup(c.CloseIdleConnections)
	return c
}

func TestMetricsOverTLS(t *testing.T) {
	a := newAuthority(t)
	a.make("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	cert, key := a.make("scraper", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	known := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	for name, c := range map[string]struct {
		clientCA string
		client   *http.Client
		scheme   string
		served   bool
	}{
		"TLS":                              {"", a.client(), "https", true},
		"not in the clear":                 {"", a.client(), "http", false},
		"an authority that nobody trusts":  {"", newAuthority(t).client(), "https", false},
		"a client's certificate":           {a.file("ca.pem"), a.client(known), "https", true},
		"without a client's certificate":   {a.file("ca.pem"), a.client(), "https", false},
		"a certificate of somebody else's": {a.file("ca.pem"), a.client(strangers(t)), "https", false},
	} {
		t.Run(name, func(t *testing.T) {
			address := listening(t, Config{Address: "127.0.0.1:0", CertFile: a.file("server.pem"), KeyFile: a.file("server.key"), ClientCAFile: c.clientCA})
			r, err := c.client.Get(c.scheme + "://" + address + "/metrics")
			if err != nil {
				if c.served {
					t.Error(err)
				}
				return
			}
			defer r.Body.Close()
			text, err := io.ReadAll(r.Body)
			if got := err == nil && r.StatusCode == http.StatusOK && strings.Contains(string(text), "berth_build_info"); got != c.served {
				t.Errorf("served: %v, %s, %v", got, r.Status, err)
			}
		})
	}
}

func strangers(t *testing.T) tls.Certificate {
	t.Helper()
	other := newAuthority(t)
	cert, key := other.make("scraper", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// listening is the address that the server says it has taken.
func listening(t *testing.T, c Config) string {
	t.Helper()
	var said bytes.Buffer
	c.Log = slog.New(slog.NewJSONHandler(&said, nil))
	s, err := Listen(c, NewMetrics("v9"), Sources{Pods: pod.New(pod.Config{}, pod.Parts{}, slog.New(slog.DiscardHandler)), Calls: telemetry.NewCalls(),
		Images:     func() []image.Image { return nil },
		FSInfo:     func(context.Context) (image.FSInfo, error) { return image.FSInfo{}, nil },
		ShimMemory: func([]string) (int, uint64) { return 0, 0 }, Denials: func() (uint64, error) { return 0, nil }, SetLevel: func(string) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	var line struct{ Address string }
	if err := json.NewDecoder(bytes.NewReader(said.Bytes())).Decode(&line); err != nil || line.Address == "" {
		t.Fatalf("%v in %s", err, said.Bytes())
	}
	return line.Address
}
