// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"
)

// store is a Source in memory.
type store struct {
	tags      map[string][]byte
	blobs     map[digest.Digest][]byte
	referrers map[digest.Digest][]ocispec.Descriptor
	err       error
	reads     int
}

func newStore() *store {
	return &store{tags: map[string][]byte{}, blobs: map[digest.Digest][]byte{}, referrers: map[digest.Digest][]ocispec.Descriptor{}}
}

func (s *store) Tagged(_ context.Context, tag string) ([]byte, error) { return s.tags[tag], s.err }

func (s *store) Referrers(_ context.Context, about digest.Digest, _ ...string) ([]ocispec.Descriptor, error) {
	return s.referrers[about], s.err
}

func (s *store) Read(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	s.reads++
	return s.blobs[desc.Digest], s.err
}

func (s *store) put(raw []byte, media string) ocispec.Descriptor {
	d := digest.FromBytes(raw)
	s.blobs[d] = raw
	return ocispec.Descriptor{MediaType: media, Digest: d, Size: int64(len(raw))}
}

// tag puts a signature where cosign's first form has it.
func (s *store) tag(t *testing.T, image digest.Digest, payload []byte, annotations map[string]string) {
	l := s.put(payload, payloadType)
	l.Annotations = annotations
	s.tags[strings.Replace(image.String(), ":", "-", 1)+".sig"] = marshal(t, ocispec.Manifest{Layers: []ocispec.Descriptor{l}})
}

// refer puts a bundle where cosign has it now.
func (s *store) refer(t *testing.T, image digest.Digest, raw []byte) {
	m := s.put(marshal(t, ocispec.Manifest{Layers: []ocispec.Descriptor{s.put(raw, bundleType)}}), ocispec.MediaTypeImageManifest)
	s.referrers[image] = append(s.referrers[image], m)
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

const (
	repository = "r.example/team/app"
	who        = "signer@example.com"
	issuer     = "https://issuer.example"
)

var image = digest.FromString("the manifest")

func payloadFor(t *testing.T, name string, of digest.Digest, kind string) []byte {
	t.Helper()
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`, name, of, kind)
}

func newKey(t *testing.T) (key *ecdsa.PrivateKey, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key, publicPEM(t, key.Public())
}

func publicPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func sign(t *testing.T, key *ecdsa.PrivateKey, data []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(data)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// policy is one in which the repository needs one thing.
func policy(t *testing.T, requirement string) *Policy {
	t.Helper()
	p, err := Load(write(t, "policy.json", `{"default":[{"type":"reject"}],"transports":{"docker":{"`+repository+`":[`+requirement+`]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestKeyedSignatures(t *testing.T) {
	key, public := newKey(t)
	other, _ := newKey(t)
	p := policy(t, `{"type":"sigstoreSigned","keyData":"`+public+`","signedIdentity":{"type":"matchRepository"}}`)
	good := payloadFor(t, repository, image, simpleSignature)
	for kind, c := range map[string]struct {
		key     *ecdsa.PrivateKey
		payload []byte
		says    string // "" is let in
	}{
		"good":             {key, good, ""},
		"another key":      {other, good, "no signature counts"},
		"another image":    {key, payloadFor(t, repository, digest.FromString("x"), simpleSignature), "it is for sha256:"},
		"another name":     {key, payloadFor(t, "r.example/other", image, simpleSignature), "the signature is for r.example/other"},
		"no name":          {key, payloadFor(t, "", image, simpleSignature), "names no repository"},
		"another document": {key, payloadFor(t, repository, image, "atomic container signature"), "payload is a"},
		"no document":      {key, []byte("x"), "payload"},
	} {
		s := newStore()
		s.tag(t, image, c.payload, map[string]string{signatureKey: base64.StdEncoding.EncodeToString(sign(t, c.key, c.payload))})
		err := p.Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, s)
		if c.says == "" && err != nil || c.says != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	s := newStore()
	if err := p.Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, s); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not signed") ||
		!strings.Contains(err.Error(), repository) {
		t.Errorf("without: %v", err)
	}
	s.tag(t, image, good, map[string]string{signatureKey: "%%"})
	if err := p.Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, s); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "unreadable") {
		t.Errorf("unreadable: %v", err)
	}
	s.err = errors.New("the registry is gone")
	if err := p.Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, s); !errors.Is(err, s.err) || errors.Is(err, ErrRefused) {
		t.Errorf("without a registry: %v", err)
	}
}

func TestASignatureOfThisNodesManifestIsEnough(t *testing.T) {
	key, public := newKey(t)
	p := policy(t, `{"type":"sigstoreSigned","keyData":"`+public+`","signedIdentity":{"type":"matchRepository"}}`)
	good, s := payloadFor(t, repository, image, simpleSignature), newStore()
	s.tag(t, image, good, map[string]string{signatureKey: base64.StdEncoding.EncodeToString(sign(t, key, good))})
	if err := p.Check(t.Context(), named(t, repository+":1"), []digest.Digest{digest.FromString("an index"), image}, s); err != nil {
		t.Error(err)
	}
}

// entityBundle makes a bundle of what the virtual sigstore has signed.
func entityBundle(t *testing.T, v *ca.VirtualSigstore, e *ca.TestEntity, media string) *protobundle.Bundle {
	t.Helper()
	content, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := e.TlogEntries()
	if err != nil {
		t.Fatal(err)
	}
	entry := entries[0].TransparencyLogEntry()
	var kind struct{ Kind, APIVersion string }
	if err := json.Unmarshal(entry.CanonicalizedBody, &kind); err != nil {
		t.Fatal(err)
	}
	entry.KindVersion = &protorekor.KindVersion{Kind: kind.Kind, Version: kind.APIVersion}
	promise, err := v.RekorSignPayload(tlog.RekorPayload{Body: base64.StdEncoding.EncodeToString(entry.CanonicalizedBody), IntegratedTime: entry.IntegratedTime,
		LogIndex: entry.LogIndex, LogID: hex.EncodeToString(entry.LogId.KeyId)})
	if err != nil {
		t.Fatal(err)
	}
	entry.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: promise}
	b := &protobundle.Bundle{MediaType: media, VerificationMaterial: &protobundle.VerificationMaterial{TlogEntries: []*protorekor.TransparencyLogEntry{entry}}}
	raw := &protocommon.X509Certificate{RawBytes: content.Certificate().Raw}
	b.VerificationMaterial.Content = &protobundle.VerificationMaterial_Certificate{Certificate: raw}
	sig, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	if env := sig.EnvelopeContent(); env != nil {
		raw := env.RawEnvelope()
		payload, err1 := base64.StdEncoding.DecodeString(raw.Payload)
		one, err2 := base64.StdEncoding.DecodeString(raw.Signatures[0].Sig)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		b.Content = &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{Payload: payload, PayloadType: raw.PayloadType,
			Signatures: []*protodsse.Signature{{Sig: one}}}}
	}
	return b
}

func virtual(t *testing.T) (v *ca.VirtualSigstore, fulcio, rekor, trustedRoot string) {
	t.Helper()
	v, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	authority := v.FulcioCertificateAuthorities()[0].(*root.FulcioCertificateAuthority)
	var certs []byte
	for _, c := range append([]*x509.Certificate{authority.Root}, authority.Intermediates...) {
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	logs := v.RekorLogs()
	for _, l := range logs {
		rekor = publicPEM(t, l.PublicKey)
		if l.ID, err = hex.DecodeString(string(l.ID)); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, v.FulcioCertificateAuthorities(), nil, v.TimestampingAuthorities(), logs)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := tr.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return v, base64.StdEncoding.EncodeToString(certs), rekor, write(t, "trusted_root.json", string(raw))
}

func TestKeylessSignatures(t *testing.T) {
	v, fulcio, rekor, trustedRoot := virtual(t)
	_, _, otherRekor, _ := virtual(t)
	payload := payloadFor(t, repository, image, simpleSignature)
	e, err := v.Sign(who, issuer, payload)
	if err != nil {
		t.Fatal(err)
	}
	b := entityBundle(t, v, e, oldBundle)
	sig, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	entry := b.VerificationMaterial.TlogEntries[0]
	annotations := func(withLog bool) map[string]string {
		a := map[string]string{signatureKey: base64.StdEncoding.EncodeToString(sig.Signature()),
			certificateKey: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.VerificationMaterial.GetCertificate().RawBytes}))}
		if withLog {
			a[rekorBundleKey] = string(marshal(t, map[string]any{"SignedEntryTimestamp": entry.InclusionPromise.SignedEntryTimestamp, "Payload": map[string]any{
				"body": entry.CanonicalizedBody, "integratedTime": entry.IntegratedTime, "logIndex": entry.LogIndex, "logID": hex.EncodeToString(entry.LogId.KeyId)}}))
		}
		return a
	}
	byFulcio := func(rekor, email, issuer string) string {
		return `{"type":"sigstoreSigned","fulcio":{"caData":"` + fulcio + `","oidcIssuer":"` + issuer + `","subjectEmail":"` + email + `"},"rekorPublicKeyData":"` + rekor +
			`","signedIdentity":{"type":"matchRepository"}}`
	}
	byRoot := func(subject string) string {
		return `{"type":"sigstoreSigned","trustedRoot":"` + trustedRoot + `","identities":[{"issuer":"` + issuer + `","subjectRegExp":"` + subject +
			`"}],"signedIdentity":{"type":"matchRepository"}}`
	}
	_, public := newKey(t)
	for kind, c := range map[string]struct {
		requirement string
		log, ok     bool
	}{
		"fulcio":              {byFulcio(rekor, who, issuer), true, true},
		"another signer":      {byFulcio(rekor, "evil@example.com", issuer), true, false},
		"another issuer":      {byFulcio(rekor, who, "https://evil.example"), true, false},
		"not logged":          {byFulcio(rekor, who, issuer), false, false},
		"another log":         {byFulcio(otherRekor, who, issuer), true, false},
		"root":                {byRoot("^signer@example\\\\.com$"), true, true},
		"root, not logged":    {byRoot("^signer@example\\\\.com$"), false, false},
		"root, another":       {byRoot("^evil@example\\\\.com$"), true, false},
		"certificate, no key": {`{"type":"sigstoreSigned","keyData":"` + public + `","signedIdentity":{"type":"matchRepository"}}`, true, false},
	} {
		s := newStore()
		s.tag(t, image, payload, annotations(c.log))
		if err := policy(t, c.requirement).Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, s); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestBundles(t *testing.T) {
	v, _, _, trustedRoot := virtual(t)
	statement := func(of digest.Digest, predicate string) []byte {
		return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"","digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`, of.Encoded(), predicate)
	}
	requirement := func(identity string) string {
		return `{"type":"sigstoreSigned","trustedRoot":"` + trustedRoot + `","identities":[{"issuer":"` + issuer + `","subject":"` + who + `"}]` + identity + `}`
	}
	any := `,"signedIdentity":{"type":"matchAny"}`
	for kind, c := range map[string]struct {
		identity, signer string
		statement        []byte
		ok               bool
	}{
		"good":                {any, who, statement(image, signedPredicate), true},
		"identity is asked":   {"", who, statement(image, signedPredicate), false},
		"another signer":      {any, "evil@example.com", statement(image, signedPredicate), false},
		"another image":       {any, who, statement(digest.FromString("x"), signedPredicate), false},
		"only an attestation": {any, who, statement(image, "https://slsa.dev/provenance/v1"), false},
	} {
		e, err := v.AttestAtTime(c.signer, issuer, c.statement, time.Now().Add(5*time.Minute), true)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := protojson.Marshal(entityBundle(t, v, e, bundleType))
		if err != nil {
			t.Fatal(err)
		}
		s := newStore()
		s.refer(t, image, raw)
		if err := policy(t, requirement(c.identity)).Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, s); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestWhatIsLookedAtIsBounded(t *testing.T) {
	_, public := newKey(t)
	p := policy(t, `{"type":"sigstoreSigned","keyData":"`+public+`"}`)
	s := newStore()
	for i := range 10 * maxSignatures {
		s.refer(t, image, fmt.Appendf(nil, "%d", i))
	}
	huge := ocispec.Descriptor{MediaType: payloadType, Digest: digest.FromString("x"), Size: maxSignature + 1}
	s.tags[strings.Replace(image.String(), ":", "-", 1)+".sig"] = marshal(t, ocispec.Manifest{Layers: []ocispec.Descriptor{huge}})
	err := p.Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, s)
	if !errors.Is(err, ErrRefused) || len(err.Error()) > 4096 || s.reads > 2*maxSignatures+2 {
		t.Errorf("%d reads, %v", s.reads, err)
	}
	s = newStore()
	for i := range 10 * maxSignatures { // of which none has a signature
		m := s.put(marshal(t, ocispec.Manifest{Annotations: map[string]string{"n": strconv.Itoa(i)}}), ocispec.MediaTypeImageManifest)
		s.referrers[image] = append(s.referrers[image], m)
	}
	if err := p.Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, s); !errors.Is(err, ErrRefused) || s.reads > maxSignatures {
		t.Errorf("%d reads, %v", s.reads, err)
	}
}

func TestGPGIsRefusedAndSaysSo(t *testing.T) {
	p := policy(t, `{"type":"signedBy","keyType":"GPGKeys","keyPath":"/x"}`)
	if err := p.Check(t.Context(), named(t, repository+":1"), []digest.Digest{image}, newStore()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "GPG") {
		t.Error(err)
	}
}

func FuzzSignature(f *testing.F) {
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`), "", "", "")
	f.Add([]byte(`{"critical":{}}`), "eA==", "", `{"SignedEntryTimestamp":"eA==","Payload":{"body":"e30=","logID":"00"}}`)
	f.Fuzz(func(_ *testing.T, raw []byte, sig, cert, log string) {
		_, _ = newBundle(raw)
		_, _ = simple(raw, map[string]string{signatureKey: sig, certificateKey: cert, rekorBundleKey: log})
		_, _ = readPayload(raw, image)
	})
}
