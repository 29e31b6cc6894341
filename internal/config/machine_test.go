// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// certificate is a self-signed one with its key, as PEM.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

func TestWhatTheConfigurationNamesIsLookedForOnTheMachine(t *testing.T) {
	cert, key := certificate(t)
	otherCert, otherKey := certificate(t)
	dir := write(t, map[string]string{"cert.pem": cert, "key.pem": key, "other.pem": otherCert, "otherkey.pem": otherKey, "text": "no certificate", "folder/x": ""})
	if err := os.WriteFile(filepath.Join(dir, "program"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{ // in the order of the lines; ~ is the folder, ? what the daemon does without
		``:                                      ``,
		"[runtimes.runc]\npath = \"~/program\"": ``,
		"[runtimes.runc]\npath = \"~/text\"":    `3: runtimes.runc.path: ~/text is no program that can be run`,
		"[runtimes.runc]\npath = \"~/folder\"":  `3: runtimes.runc.path: ~/folder is no program that can be run`,
		"[runtimes.nope]\ntype = \"oci\"":       `runtimes.nope.path: nope is neither beside this program nor on PATH`,
		"[runtimes.k]\ntype = \"shim\"\nshim = \"io.containerd.nope.v2\"": `runtimes.k.path: containerd-shim-nope-v2 is neither`,
		"[shim]\npath = \"~/nope\"":                                       `3: shim.path: ~/nope: no such file or directory`,
		"socket_group = \"no-such-group\"":                                `2: socket_group: there is no group "no-such-group" on this machine`,
		"socket_group = \"12345\"":                                        ``,
		"[images]\nsignature_policy = \"~/nope\"":                         `3: images.signature_policy: ~/nope: no such file or directory`,
		"[images]\nsignature_policy = \"~/folder\"":                       `3: images.signature_policy: ~/folder is no file`,
		"[streaming]\ncert_file = \"~/cert.pem\"\nkey_file = \"~/key.pem\"\nclient_ca_file = \"~/other.pem\"": ``,
		"[streaming]\ncert_file = \"~/cert.pem\"\nkey_file = \"~/otherkey.pem\"":                              `3: streaming.cert_file: ~/cert.pem with the key ~/otherkey.pem: tls: private key does not match`,
		"[streaming]\ncert_file = \"~/cert.pem\"\nkey_file = \"~/nope\"":                                      `4: streaming.key_file: ~/nope: no such file or directory`,
		"[streaming]\ncert_file = \"~/cert.pem\"\nkey_file = \"~/key.pem\"\nclient_ca_file = \"~/text\"":      `5: streaming.client_ca_file: ~/text holds no certificate`,
		"[metrics]\naddress = \"127.0.0.1:1\"\ncert_file = \"~/nope\"\nkey_file = \"~/key.pem\"":              `4: metrics.cert_file: ~/nope: no such file or directory`,
		"[tracing]\nendpoint = \"h:1\"\nca_file = \"~/nope\"":                                                 `4: tracing.ca_file: ~/nope: no such file or directory`,
		"[qos]\nblockio_config = \"~/nope\"":                                                                  `3: qos.blockio_config: ~/nope: no such file or directory`,
		"[hooks]\ndirs = [\"~/folder\", \"~/nope\"]":                                                          `?3: hooks.dirs: ~/nope: no such file or directory`,
		"[registry]\ncredential_files = [\"~/nope\"]":                                                         `?3: registry.credential_files: ~/nope: no such file or directory`,
	} {
		file := filepath.Join(dir, "config.toml")
		if err := os.WriteFile(file, []byte("version = 1\n"+strings.ReplaceAll(text, "~", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		broken, ignored := OnMachine(load(t, dir))
		var got []string
		for _, p := range broken {
			got = append(got, strings.TrimPrefix(p.Error(), file+":"))
		}
		for _, p := range ignored {
			got = append(got, "?"+strings.TrimPrefix(p.Error(), file+":"))
		}
		want = strings.ReplaceAll(want, "~", dir)
		if all := strings.Join(got, "\n"); (want == "") != (all == "") || len(got) > 1 || !strings.HasPrefix(all, want) {
			t.Errorf("%s\n  got  %s\n  want %s", text, all, want)
		}
	}
}

func TestAProgramIsLookedForBesideThisOneThenInPATH(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "crun"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	for _, c := range []struct {
		r    Runtime
		want string
	}{
		{Runtime{Type: "oci"}, filepath.Join(dir, "crun")},
		{Runtime{Type: "oci", Path: "/somewhere/crun"}, "/somewhere/crun"},
	} {
		if got, err := c.r.Find("crun"); err != nil || got != c.want {
			t.Errorf("%+v: %q, %v; want %q", c.r, got, err, c.want)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Program("", filepath.Base(self)); err != nil || got != self {
		t.Errorf("beside this one: %q, %v", got, err)
	}
	if got, err := Program("", "nope"); err == nil {
		t.Errorf("nope is %q", got)
	}
}
