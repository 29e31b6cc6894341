// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxSignatures bounds what is looked at for one image; maxSignature the size of each.
	maxSignatures = 64
	maxSignature  = 1 << 20
	// maxReasons are told in one error.
	maxReasons = 4
	// artifacts that refer to an image and are signatures.
	bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	cosignType = "application/vnd.dev.cosign.artifact.sig.v1+json"
)

// Source is the repository that an image comes from, where its signatures are. What is not there is no error but nothing.
type Source interface {
	// Tagged reads the manifest that a tag stands for.
	Tagged(ctx context.Context, tag string) ([]byte, error)
	// Referrers are the artifacts of these types that say that they are about a manifest.
	Referrers(ctx context.Context, about digest.Digest, types ...string) ([]ocispec.Descriptor, error)
	// Read reads a manifest or a blob, of which the digest is checked.
	Read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
}

// Check tells whether the policy lets an image in: it has a name, and its manifests, from the one that the name stands for to the one
// for this node, of which one must be signed. ErrRefused says which policy wants what; other errors are of src.
func (p *Policy) Check(ctx context.Context, name reference.Named, manifests []digest.Digest, src Source) error {
	scope, all := p.scope(name)
	var signatures map[digest.Digest][]found
	var broken []error
	for _, r := range all {
		refuse := func(why string, a ...any) error {
			return fmt.Errorf("policy %s, scope %q, requirement %s: %s: %w", p.file, scope, r.kind, fmt.Sprintf(why, a...), ErrRefused)
		}
		switch r.kind {
		case acceptAnything:
			continue
		case rejectAll:
			return refuse("images of %s are not let in", name.Name())
		case gpgSigned:
			return refuse("GPG signatures are not supported: sign with cosign, and ask for sigstoreSigned")
		}
		if signatures == nil {
			var err error
			if signatures, broken, err = collect(ctx, manifests, src); err != nil {
				return fmt.Errorf("look for signatures: %w", err)
			}
		}
		if reasons := r.satisfied(name, signatures); reasons != nil {
			return refuse("%s", tell(append(reasons, broken...)))
		}
	}
	return nil
}

// tell makes a sentence of why no signature counts.
func tell(reasons []error) string {
	if len(reasons) == 0 {
		return "the image is not signed"
	}
	var texts []string
	for _, r := range reasons {
		if len(texts) == maxReasons {
			texts = append(texts, "…")
			break
		}
		texts = append(texts, r.Error())
	}
	return "no signature counts: " + strings.Join(texts, "; ")
}

// satisfied is nil when one signature by one signer is enough; else it says what is wrong with each.
func (r requirement) satisfied(name reference.Named, all map[digest.Digest][]found) []error {
	reasons := []error{}
	for manifest, signatures := range all {
		for _, f := range signatures {
			for _, s := range r.signers {
				signed, err := s.verify(f, manifest)
				if err == nil {
					err = r.identity.fits(name, signed)
				}
				if err == nil {
					return nil
				}
				reasons = append(reasons, err)
			}
		}
	}
	return reasons
}

// collect finds the signatures of manifests in both places where cosign keeps them. What cannot be read is in broken.
func collect(ctx context.Context, manifests []digest.Digest, src Source) (all map[digest.Digest][]found, broken []error, err error) {
	all = map[digest.Digest][]found{}
	left := maxSignatures
	add := func(of digest.Digest, f found, err error) {
		if err != nil {
			broken = append(broken, fmt.Errorf("unreadable: %w", err))
			return
		}
		all[of] = append(all[of], f)
	}
	for _, of := range manifests {
		raw, err := src.Tagged(ctx, strings.Replace(of.String(), ":", "-", 1)+".sig")
		if err != nil {
			return nil, nil, err
		}
		if err := layers(ctx, raw, src, &left, func(f found, err error) { add(of, f, err) }); err != nil {
			return nil, nil, err
		}
		refs, err := src.Referrers(ctx, of, bundleType, cosignType)
		if err != nil {
			return nil, nil, err
		}
		for n, ref := range refs {
			if left <= 0 || n == maxSignatures { // such as say that they have no signature count, too
				break
			}
			if ref.Size > maxSignature {
				add(of, found{}, fmt.Errorf("%s has %d bytes", ref.Digest, ref.Size))
				continue
			}
			raw, err := src.Read(ctx, ref)
			if err != nil {
				return nil, nil, err
			}
			if err := layers(ctx, raw, src, &left, func(f found, err error) { add(of, f, err) }); err != nil {
				return nil, nil, err
			}
		}
	}
	return all, broken, nil
}

// layers reads the signatures of one manifest.
func layers(ctx context.Context, manifest []byte, src Source, left *int, add func(found, error)) error {
	if manifest == nil {
		return nil
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		add(found{}, fmt.Errorf("manifest of signatures: %w", err))
		m = ocispec.Manifest{}
	}
	for _, l := range m.Layers {
		isBundle := strings.HasPrefix(l.MediaType, "application/vnd.dev.sigstore.bundle")
		if !isBundle && l.MediaType != payloadType {
			continue
		}
		if *left--; *left < 0 {
			return nil
		}
		if l.Size > maxSignature {
			add(found{}, fmt.Errorf("%s has %d bytes", l.Digest, l.Size))
			continue
		}
		raw, err := src.Read(ctx, l)
		if err != nil {
			return err
		}
		if isBundle {
			add(newBundle(raw))
		} else {
			add(simple(raw, l.Annotations))
		}
	}
	return nil
}
