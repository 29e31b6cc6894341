// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/berth-run/berth/internal/linux/fsys"
)

// sigstoreForm is a sigstoreSigned requirement as containers-policy.json(5) has it. TrustedRoot and Identities are ours.
type sigstoreForm struct {
	Type                string          `json:"type"`
	KeyPath             string          `json:"keyPath"`
	KeyPaths            []string        `json:"keyPaths"`
	KeyData             []byte          `json:"keyData"`
	KeyDatas            [][]byte        `json:"keyDatas"`
	Fulcio              *fulcioForm     `json:"fulcio"`
	PKI                 json.RawMessage `json:"pki"`
	RekorPublicKeyPath  string          `json:"rekorPublicKeyPath"`
	RekorPublicKeyPaths []string        `json:"rekorPublicKeyPaths"`
	RekorPublicKeyData  []byte          `json:"rekorPublicKeyData"`
	RekorPublicKeyDatas [][]byte        `json:"rekorPublicKeyDatas"`
	SignedIdentity      json.RawMessage `json:"signedIdentity"`
	// TrustedRoot is the path of a trusted_root.json, which holds all keys and certificates of a sigstore.
	TrustedRoot string `json:"trustedRoot"`
	// Identities are who may have signed, with certificates of the trusted root.
	Identities []identityForm `json:"identities"`
}

type fulcioForm struct {
	CAPath       string `json:"caPath"`
	CAData       []byte `json:"caData"`
	OIDCIssuer   string `json:"oidcIssuer"`
	SubjectEmail string `json:"subjectEmail"`
}

type identityForm struct {
	Issuer        string `json:"issuer"`
	IssuerRegExp  string `json:"issuerRegExp"`
	Subject       string `json:"subject"`
	SubjectRegExp string `json:"subjectRegExp"`
}

// signer is one key, or certificates of some identities, that a signature may come from.
type signer struct {
	verifier *verify.Verifier
	who      []verify.PolicyOption
	keyed    bool
}

func parseSigstore(raw json.RawMessage) (requirement, error) {
	r := requirement{kind: sigstoreSigned}
	var f sigstoreForm
	err := strict(raw, &f)
	if err != nil {
		return r, err
	}
	if r.identity, err = parseIdentity(f.SignedIdentity); err != nil {
		return r, err
	}
	keys, err := gather(f.KeyPath, f.KeyPaths, f.KeyData, f.KeyDatas)
	if err != nil {
		return r, err
	}
	ways := 0
	for _, is := range []bool{len(keys) > 0, f.Fulcio != nil, len(f.PKI) > 0, f.TrustedRoot != ""} {
		if is {
			ways++
		}
	}
	rekor, err := rekorLogs(f)
	switch {
	case err != nil:
		return r, err
	case ways != 1:
		return r, errors.New("one of keyPath, keyPaths, keyData, keyDatas, fulcio and trustedRoot must be given")
	case len(f.PKI) > 0:
		return r, errors.New("pki is not supported: use keys, fulcio or trustedRoot")
	case len(f.Identities) > 0 && f.TrustedRoot == "":
		return r, errors.New("identities go with trustedRoot")
	case f.TrustedRoot != "" && len(rekor) > 0:
		return r, errors.New("trustedRoot has Rekor's keys itself")
	case f.Fulcio != nil:
		r.signers, err = f.Fulcio.signers(rekor)
	case f.TrustedRoot != "":
		r.signers, err = rootSigners(f.TrustedRoot, f.Identities)
	default:
		r.signers, err = keySigners(keys, rekor)
	}
	return r, err
}

// gather collects what may be given as a path, paths, data or datas.
func gather(path string, paths []string, data []byte, datas [][]byte) ([][]byte, error) {
	all := datas
	if len(data) > 0 {
		all = append(all, data)
	}
	if path != "" {
		paths = append(paths, path)
	}
	for _, p := range paths {
		raw, err := fsys.ReadFile(p, maxFile)
		if err != nil {
			return nil, err
		}
		all = append(all, raw)
	}
	return all, nil
}

func rekorLogs(f sigstoreForm) (map[string]*root.TransparencyLog, error) {
	keys, err := gather(f.RekorPublicKeyPath, f.RekorPublicKeyPaths, f.RekorPublicKeyData, f.RekorPublicKeyDatas)
	if err != nil {
		return nil, err
	}
	logs := map[string]*root.TransparencyLog{}
	for _, raw := range keys {
		key, err := cryptoutils.UnmarshalPEMToPublicKey(raw)
		if err != nil {
			return nil, fmt.Errorf("public key of Rekor: %w", err)
		}
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, fmt.Errorf("public key of Rekor: %w", err)
		}
		id := sha256.Sum256(der)
		logs[hex.EncodeToString(id[:])] = &root.TransparencyLog{ID: id[:], PublicKey: key, HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256,
			ValidityPeriodStart: time.Unix(0, 0)}
	}
	return logs, nil
}

// material is what one signer is trusted by.
type material struct {
	root.BaseTrustedMaterial
	key   root.TimeConstrainedVerifier
	rekor map[string]*root.TransparencyLog
	cas   []root.CertificateAuthority
}

func (m *material) RekorLogs() map[string]*root.TransparencyLog               { return m.rekor }
func (m *material) FulcioCertificateAuthorities() []root.CertificateAuthority { return m.cas }

func (m *material) PublicKeyVerifier(hint string) (root.TimeConstrainedVerifier, error) {
	if m.key == nil {
		return m.BaseTrustedMaterial.PublicKeyVerifier(hint)
	}
	return m.key, nil // whatever the bundle calls it
}

func keySigners(keys [][]byte, rekor map[string]*root.TransparencyLog) ([]signer, error) {
	var all []signer
	for _, raw := range keys {
		key, err := cryptoutils.UnmarshalPEMToPublicKey(raw)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		v, err := signature.LoadVerifier(key, crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		how := []verify.VerifierOption{verify.WithNoObserverTimestamps()}
		if len(rekor) > 0 {
			how = logged
		}
		verifier, err := verify.NewVerifier(&material{key: root.NewExpiringKey(v, time.Time{}, time.Time{}), rekor: rekor}, how...)
		if err != nil {
			return nil, err
		}
		all = append(all, signer{verifier, []verify.PolicyOption{verify.WithKey()}, true})
	}
	return all, nil
}

// logged demands an entry in a transparency log, whose time counts.
var logged = []verify.VerifierOption{verify.WithTransparencyLog(1), verify.WithIntegratedTimestamps(1)}

func (f *fulcioForm) signers(rekor map[string]*root.TransparencyLog) ([]signer, error) {
	cas, err := gather(f.CAPath, nil, f.CAData, nil)
	switch {
	case err != nil:
		return nil, err
	case len(cas) != 1:
		return nil, errors.New("fulcio: one of caPath and caData must be given")
	case f.OIDCIssuer == "" || f.SubjectEmail == "":
		return nil, errors.New("fulcio: oidcIssuer and subjectEmail must be given")
	case len(rekor) == 0:
		return nil, errors.New("fulcio: a public key of Rekor must be given")
	}
	certs, err := cryptoutils.UnmarshalCertificatesFromPEM(cas[0])
	if err != nil || len(certs) == 0 {
		return nil, errors.New("fulcio: no certificates in PEM")
	}
	m := &material{rekor: rekor}
	var between []*x509.Certificate
	for _, c := range certs {
		if !bytes.Equal(c.RawIssuer, c.RawSubject) {
			between = append(between, c)
		}
	}
	for _, c := range certs {
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			m.cas = append(m.cas, &root.FulcioCertificateAuthority{Root: c, Intermediates: between, ValidityPeriodStart: c.NotBefore, ValidityPeriodEnd: c.NotAfter})
		}
	}
	verifier, err := verify.NewVerifier(m, logged...)
	if err != nil {
		return nil, err
	}
	who, err := verify.NewShortCertificateIdentity(f.OIDCIssuer, "", f.SubjectEmail, "")
	if err != nil {
		return nil, err
	}
	return []signer{{verifier, []verify.PolicyOption{verify.WithCertificateIdentity(who)}, false}}, nil
}

// rootSigners trusts identities by all that a sigstore has: certificates, logs, and time stamps where it has such.
func rootSigners(file string, identities []identityForm) ([]signer, error) {
	raw, err := fsys.ReadFile(file, maxFile)
	if err != nil {
		return nil, err
	}
	trusted, err := root.NewTrustedRootFromJSON(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(identities) == 0 {
		return nil, errors.New("trustedRoot needs identities: anybody gets a certificate")
	}
	var who []verify.PolicyOption
	for _, f := range identities {
		if f.Issuer == "" && f.IssuerRegExp == "" || f.Subject == "" && f.SubjectRegExp == "" {
			return nil, errors.New("identities need an issuer and a subject each")
		}
		id, err := verify.NewShortCertificateIdentity(f.Issuer, f.IssuerRegExp, f.Subject, f.SubjectRegExp)
		if err != nil {
			return nil, fmt.Errorf("identities: %w", err)
		}
		who = append(who, verify.WithCertificateIdentity(id))
	}
	how := []verify.VerifierOption{verify.WithObserverTimestamps(1)}
	if len(trusted.RekorLogs()) > 0 {
		how = append(how, verify.WithTransparencyLog(1))
	}
	if len(trusted.CTLogs()) > 0 {
		how = append(how, verify.WithSignedCertificateTimestamps(1))
	}
	verifier, err := verify.NewVerifier(trusted, how...)
	if err != nil {
		return nil, err
	}
	return []signer{{verifier, who, false}}, nil
}

// certificate decodes a PEM of one certificate.
func certificate(text string) ([]byte, error) {
	certs, err := cryptoutils.UnmarshalCertificatesFromPEM([]byte(text))
	if err != nil || len(certs) == 0 {
		return nil, errors.New("certificate is not one in PEM")
	}
	return certs[0].Raw, nil
}

func unbase64(text string) ([]byte, error) { return base64.StdEncoding.DecodeString(text) }
