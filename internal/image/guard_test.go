// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
)

// signed pushes a cosign signature of an image beside it.
func (s *registryServer) sign(t *testing.T, repository string, of v1.Image, key *ecdsa.PrivateKey) {
	t.Helper()
	digest, err := of.Digest()
	if err != nil {
		t.Fatal(err)
	}
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"}}`,
		s.host()+"/"+repository, digest)
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	im, err := mutate.Append(empty.Image, mutate.Addendum{Layer: static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}})
	if err != nil {
		t.Fatal(err)
	}
	s.push(t, repository+":"+strings.Replace(digest.String(), ":", "-", 1)+".sig", im)
}

func signingKey(t *testing.T, file string) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return key
}

func TestThePolicyDecidesWhatIsPulled(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	file, public := filepath.Join(dir, "policy.json"), filepath.Join(dir, "key.pem")
	key := signingKey(t, public)
	other := signingKey(t, filepath.Join(dir, "other.pem"))
	policy := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	byKey := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{"%s/ours":[{"type":"sigstoreSigned","keyPath":%q,"signedIdentity":{"type":"matchRepository"}}],
		"%s/open":[{"type":"insecureAcceptAnything"}]}}}`, reg.host(), public, reg.host())
	policy(byKey)
	s := openWith(t, t.TempDir(), func(c *Config) { c.PolicyFile = file })
	push := func(repository, content string) (string, v1.Image) {
		im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": content}))
		return reg.push(t, repository+":1", im), im
	}
	good, goodImage := push("ours/good", "good")
	reg.sign(t, "ours/good", goodImage, key)
	bad, badImage := push("ours/bad", "bad")
	reg.sign(t, "ours/bad", badImage, other)
	unsigned, _ := push("ours/unsigned", "unsigned")
	elsewhere, _ := push("elsewhere", "elsewhere")
	open, _ := push("open/x", "open")
	var layers atomic.Int64
	blob := layerPath(t, badImage, 0)
	reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, blob) {
			layers.Add(1)
		}
		return false
	})
	for ref, says := range map[string]string{good: "", open: "", bad: "no signature counts", unsigned: "not signed", elsewhere: "not let in"} {
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		if says == "" && err != nil || says != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), file)) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if layers.Load() > 0 {
		t.Error("layers of what is refused were fetched")
	}
	if n := len(s.List()); n != 2 {
		t.Errorf("%d images are here", n)
	}
	var asked atomic.Int64
	reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, ".sig") || strings.Contains(r.URL.Path, "/referrers/") {
			asked.Add(1)
		}
		return false
	})
	if mustPull(t, s, good); asked.Load() > 0 {
		t.Error("a signature that counts was looked for again")
	}
	policy(`{"default":[{"type":"reject"}]}`)
	if err := s.ReloadPolicy(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), PullRequest{Ref: good}); !errors.Is(err, ErrRefused) {
		t.Errorf("what is here is let in against a new policy: %v", err)
	}
	policy(`{`)
	if err := s.ReloadPolicy(); err == nil {
		t.Error("a broken policy is read")
	}
	if _, err := s.Pull(t.Context(), PullRequest{Ref: open}); !errors.Is(err, ErrRefused) {
		t.Errorf("a broken policy has replaced one: %v", err)
	}
}

func TestWithABrokenPolicyNothingIsLetIn(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	file := filepath.Join(t.TempDir(), "policy.json")
	s := openWith(t, t.TempDir(), func(c *Config) { c.PolicyFile = file }) // which is not there
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(file, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.ReloadPolicy(); err != nil {
		t.Fatal(err)
	}
	mustPull(t, s, ref)
}

func TestAnUnreachableSignatureIsNoRefusal(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	file, public := filepath.Join(dir, "policy.json"), filepath.Join(dir, "key.pem")
	signingKey(t, public)
	text := fmt.Sprintf(`{"default":[{"type":"sigstoreSigned","keyPath":%q}]}`, public)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openWith(t, t.TempDir(), func(c *Config) { c.PolicyFile = file })
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, ".sig") {
			w.WriteHeader(http.StatusInsufficientStorage) // nothing that passes
			return true
		}
		return false
	})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "signatures") {
		t.Errorf("got %v", err)
	}
}

func TestThePolicyDecidesWhatIsImportedAndTagged(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	file, public := filepath.Join(dir, "policy.json"), filepath.Join(dir, "key.pem")
	signingKey(t, public)
	policy := func(s *Store, archives string) {
		text := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{"%s":[{"type":"insecureAcceptAnything"}],"open.example":[{"type":"insecureAcceptAnything"}],
			"secret.example":[{"type":"sigstoreSigned","keyPath":%q}]}%s}}`, reg.host(), public, archives)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s != nil {
			if err := s.ReloadPolicy(); err != nil {
				t.Fatal(err)
			}
		}
	}
	policy(nil, "")
	s := openWith(t, t.TempDir(), func(c *Config) { c.PolicyFile, c.KeepLayers = file, true })
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	im := mustPull(t, s, ref)
	archive := exported(t, s, ref)
	if _, _, err := s.Tag(t.Context(), ref, "secret.example/x:1"); !errors.Is(err, ErrRefused) {
		t.Errorf("tagged: %v", err)
	}
	if _, _, err := s.Tag(t.Context(), ref, "open.example/x:1"); err != nil {
		t.Error(err)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(archive), "secret.example/x:1"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), file) {
		t.Errorf("imported: %v", err)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(archive), "open.example/y:1"); err != nil {
		t.Error(err)
	}
	if _, err := s.Status("secret.example/x:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	policy(s, `,"oci-archive":{"":[{"type":"insecureAcceptAnything"}]}`)
	if _, err := s.Import(t.Context(), bytes.NewReader(archive), "secret.example/x:1"); err != nil {
		t.Error(err)
	}
	policy(s, "")
	// What it is called already it may be called again.
	if _, _, err := s.Tag(t.Context(), im.ID, "secret.example/x:1"); err != nil {
		t.Error(err)
	}
}
