// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestAHostHasItsOwnCAAndClientCertificateAndHeaders(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Node") != "berth" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
		w.Header().Set("Content-Length", "1")
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool()}
	srv.TLS.ClientCAs.AddCert(cert)
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	file := func(name, kind string, der []byte) string {
		return write(t, filepath.Join(dir, name), string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})), 0o600)
	}
	ca := file("ca.pem", "CERTIFICATE", srv.Certificate().Raw)
	client := fmt.Sprintf("  client = [[%q, %q]]\n", file("client.pem", "CERTIFICATE", der), file("client.key", "EC PRIVATE KEY", rawKey))
	header := fmt.Sprintf("  [host.%q.header]\n    x-node = \"berth\"\n", srv.URL)
	for kind, c := range map[string]struct {
		text string
		ok   bool
	}{
		"all":       {fmt.Sprintf("  ca = %q\n", ca) + client + header, true},
		"no CA":     {client + header, false},
		"no client": {fmt.Sprintf("  ca = %q\n", ca) + header, false},
		"no header": {fmt.Sprintf("  ca = %q\n", ca) + client, false},
	} {
		dirs := hosts(t, srv.URL, fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", srv.URL)+c.text)
		s, err := newClient().Session(t.Context(), Request{Name: named(t, strings.TrimPrefix(srv.URL, "https://")+"/x:1"), CertsDirs: dirs})
		if err != nil {
			t.Fatal(err)
		}
		s.direct.Store(false)
		if _, err := s.Resolve(t.Context()); (err == nil) != c.ok {
			t.Errorf("%s: %v", kind, err)
		}
		s.Close()
	}
}

const proxyChild = "BERTH_TEST_PROXY_CHILD"

// TestProxyVariables runs itself: net/http reads the variables once in a process's life.
func TestProxyVariables(t *testing.T) {
	if dir := os.Getenv(proxyChild); dir != "" {
		name, err := reference.ParseDockerRef("registry.example/x:1")
		if err != nil {
			t.Fatal(err)
		}
		s, err := newClient().Session(t.Context(), Request{Name: name, CertsDirs: []string{dir}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Resolve(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	}
	asked := make(chan string, 100)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
		w.Header().Set("Content-Length", "1")
	}))
	defer proxy.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyVariables$")
	cmd.Env = append(os.Environ(), proxyChild+"="+hosts(t, "http://registry.example", "")[0], "HTTP_PROXY="+proxy.URL, "NO_PROXY=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := <-asked; got != "http://registry.example/v2/x/manifests/1" {
		t.Errorf("the proxy was asked for %s", got)
	}
}
