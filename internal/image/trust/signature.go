// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// found is a signature, not yet verified.
type found struct {
	bundle *bundle.Bundle
	// payload is what a signature of cosign's first form signs; empty in a bundle, which is about the image's digest itself.
	payload []byte
}

// Annotations of a layer that is a signature (cosign's specs/SIGNATURE_SPEC.md).
const (
	payloadType     = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureKey    = "dev.cosignproject.cosign/signature"
	certificateKey  = "dev.sigstore.cosign/certificate"
	rekorBundleKey  = "dev.sigstore.cosign/bundle"
	simpleSignature = "cosign container image signature"
	// oldBundle is the form of bundle that may have a log's promise without its proof, as cosign's first form has.
	oldBundle = "application/vnd.dev.sigstore.bundle+json;version=0.1"
	// signedPredicate is what cosign's bundles for images say; anything else is an attestation about an image and no approval of it.
	signedPredicate = "https://sigstore.dev/cosign/sign/v1"
)

// rekorBundle is the promise of a log, which cosign keeps beside a signature so that it can be checked offline.
type rekorBundle struct {
	SignedEntryTimestamp []byte
	Payload              struct {
		Body           []byte `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogIndex       int64  `json:"logIndex"`
		LogID          string `json:"logID"`
	}
}

// simple makes a bundle of cosign's first form, so that both are verified in the same way.
func simple(payload []byte, annotations map[string]string) (found, error) {
	sig, err := unbase64(annotations[signatureKey])
	if err != nil || len(sig) == 0 || len(payload) == 0 {
		return found{}, errors.New("no signature in its annotations")
	}
	sum := sha256.Sum256(payload)
	m := &protobundle.VerificationMaterial{Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}}}
	if text := annotations[certificateKey]; text != "" {
		der, err := certificate(text)
		if err != nil {
			return found{}, err
		}
		m.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: &protocommon.X509CertificateChain{
			Certificates: []*protocommon.X509Certificate{{RawBytes: der}}}}
	}
	if text := annotations[rekorBundleKey]; text != "" {
		entry, err := logEntry(text)
		if err != nil {
			return found{}, err
		}
		m.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	b, err := bundle.NewBundle(&protobundle.Bundle{MediaType: oldBundle, VerificationMaterial: m,
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]}, Signature: sig}}})
	return found{b, payload}, err
}

func logEntry(text string) (*protorekor.TransparencyLogEntry, error) {
	var r rekorBundle
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fmt.Errorf("bundle of Rekor: %w", err)
	}
	id, err := hex.DecodeString(r.Payload.LogID)
	if err != nil {
		return nil, fmt.Errorf("bundle of Rekor: %w", err)
	}
	var kind struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(r.Payload.Body, &kind); err != nil {
		return nil, fmt.Errorf("bundle of Rekor: %w", err)
	}
	return &protorekor.TransparencyLogEntry{LogIndex: r.Payload.LogIndex, LogId: &protocommon.LogId{KeyId: id},
		KindVersion: &protorekor.KindVersion{Kind: kind.Kind, Version: kind.APIVersion}, IntegratedTime: r.Payload.IntegratedTime,
		InclusionPromise: &protorekor.InclusionPromise{SignedEntryTimestamp: r.SignedEntryTimestamp}, CanonicalizedBody: r.Payload.Body}, nil
}

func newBundle(raw []byte) (found, error) {
	b := &bundle.Bundle{}
	if err := b.UnmarshalJSON(raw); err != nil {
		return found{}, err
	}
	return found{bundle: b}, nil
}

// verify checks a signature by one signer and returns the name that it is for, "" if it says none.
func (s signer) verify(f found, image digest.Digest) (name string, err error) {
	content, err := f.bundle.VerificationContent()
	if err != nil {
		return "", err
	}
	if s.keyed != (content.Certificate() == nil) {
		if s.keyed {
			return "", errors.New("it comes with a certificate, and the policy has keys")
		}
		return "", errors.New("it comes without a certificate")
	}
	if f.payload == nil {
		return "", s.verifyBundle(f, image)
	}
	if _, err := s.verifier.Verify(f.bundle, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(f.payload)), s.who...)); err != nil {
		return "", err
	}
	return readPayload(f.payload, image)
}

func (s signer) verifyBundle(f found, image digest.Digest) error {
	sum, err := hex.DecodeString(image.Encoded())
	if err != nil {
		return err
	}
	result, err := s.verifier.Verify(f.bundle, verify.NewPolicy(verify.WithArtifactDigest(image.Algorithm().String(), sum), s.who...))
	if err != nil {
		return err
	}
	if result.Statement != nil && result.Statement.GetPredicateType() != signedPredicate {
		return fmt.Errorf("it is an attestation of kind %q, no signature", result.Statement.GetPredicateType())
	}
	return nil
}

// readPayload reads what has been verified to be signed.
func readPayload(raw []byte, image digest.Digest) (name string, err error) {
	var p struct {
		Critical struct {
			Identity struct {
				DockerReference string `json:"docker-reference"`
			} `json:"identity"`
			Image struct {
				DockerManifestDigest digest.Digest `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return "", fmt.Errorf("payload: %w", err)
	}
	if !slices.Contains([]string{simpleSignature, "https://sigstore.dev/cosign/sign/v1"}, p.Critical.Type) {
		return "", fmt.Errorf("payload is a %q", p.Critical.Type)
	}
	if p.Critical.Image.DockerManifestDigest != image {
		return "", fmt.Errorf("it is for %s", p.Critical.Image.DockerManifestDigest)
	}
	return p.Critical.Identity.DockerReference, nil
}
