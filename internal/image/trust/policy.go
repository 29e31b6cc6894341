// SPDX-License-Identifier: Apache-2.0

// Package trust decides by signatures whether an image may be used on this node. The policy is in the form that CRI-O, podman and skopeo read
// (containers-policy.json(5)), with additions of our own; signatures are cosign's, checked offline. Only package image uses it, and it is the
// only door to sigstore's libraries.
package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/distribution/reference"

	"github.com/berth-run/berth/internal/linux/fsys"
)

var (
	// ErrRefused: the policy lets no such image in, or not without a signature that the image does not have.
	ErrRefused = errors.New("refused by the signature policy")
	// ErrPolicy: the policy cannot be read; nothing can be let in by it.
	ErrPolicy = errors.New("signature policy is not valid")
)

const (
	// maxFile bounds the policy and each file that it names.
	maxFile = 4 << 20
	// docker is the transport of images from registries, archives are those of files that are imported; the others are not the node's.
	docker = "docker"
)

var archives = []string{"oci-archive", "docker-archive"}

// Policy says what each image needs. It is never changed.
type Policy struct {
	file       string
	otherwise  []requirement
	registries map[string][]requirement
	// archives are what images of files need, of whatever name; nil: what their name needs.
	archives []requirement
}

// requirement is one thing that an image needs; all of a scope's must hold.
type requirement struct {
	kind string
	// of kind signed
	signers  []signer
	identity identity
}

const (
	acceptAnything = "insecureAcceptAnything"
	rejectAll      = "reject"
	gpgSigned      = "signedBy"
	sigstoreSigned = "sigstoreSigned"
)

type policyFile struct {
	Default    []json.RawMessage                       `json:"default"`
	Transports map[string]map[string][]json.RawMessage `json:"transports"`
}

// Load reads a policy with all keys and certificates that it names. A policy that says something that is not understood is not valid: it would
// protect less than its owner thinks.
func Load(file string) (*Policy, error) {
	p, err := load(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", file, ErrPolicy, err)
	}
	return p, nil
}

func load(file string) (*Policy, error) {
	raw, err := fsys.ReadFile(file, maxFile)
	if err != nil {
		return nil, err
	}
	var f policyFile
	if err := strict(raw, &f); err != nil {
		return nil, err
	}
	p := &Policy{file: file, registries: map[string][]requirement{}}
	if p.otherwise, err = requirements("default", f.Default); err != nil {
		return nil, err
	}
	for scope, raw := range f.Transports[docker] {
		if p.registries[scope], err = requirements("scope "+scope, raw); err != nil {
			return nil, err
		}
	}
	for _, transport := range archives { // which of both an archive is, nobody says; it comes from no path that a scope could name
		if raw, ok := f.Transports[transport][""]; ok {
			r, err := requirements("transport "+transport, raw)
			if err != nil {
				return nil, err
			}
			p.archives = append(p.archives, r...)
		}
	}
	return p, nil
}

func requirements(where string, raw []json.RawMessage) ([]requirement, error) {
	if len(raw) == 0 {
		return nil, fmt.Errorf("%s: it needs at least one requirement", where)
	}
	var all []requirement
	for i, one := range raw {
		r, err := parseRequirement(one)
		if err != nil {
			return nil, fmt.Errorf("%s: requirement %d: %w", where, i+1, err)
		}
		all = append(all, r)
	}
	return all, nil
}

func parseRequirement(raw json.RawMessage) (requirement, error) {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return requirement{}, err
	}
	switch head.Type {
	case acceptAnything, rejectAll:
		if err := strict(raw, &head); err != nil {
			return requirement{}, err
		}
		return requirement{kind: head.Type}, nil
	case gpgSigned: // readable, so that a policy that is shared with other nodes is; what it asks for is refused
		return requirement{kind: head.Type}, nil
	case sigstoreSigned:
		return parseSigstore(raw)
	}
	return requirement{}, fmt.Errorf("type %q is not known", head.Type)
}

// scope finds the requirements that count for an image: the most specific ones.
func (p *Policy) scope(name reference.Named) (string, []requirement) {
	for _, s := range scopes(name) {
		if r, ok := p.registries[s]; ok {
			return s, r
		}
	}
	return "default", p.otherwise
}

// scopes are the names under which a policy may mean an image: itself, its repository, the folders around that, its registry, and
// domains around the registry.
func scopes(name reference.Named) []string {
	var all []string
	if full := name.String(); full != name.Name() {
		all = append(all, full)
	}
	for s := name.Name(); ; {
		all = append(all, s)
		i := strings.LastIndexByte(s, '/')
		if i < 0 {
			break
		}
		s = s[:i]
	}
	host, _, _ := strings.Cut(reference.Domain(name), ":")
	for {
		_, rest, ok := strings.Cut(host, ".")
		if !ok {
			break
		}
		host = rest
		all = append(all, "*."+host)
	}
	return append(all, "")
}

// Open says whether anything is let in under a name.
func (p *Policy) Open(name reference.Named) bool {
	_, all := p.scope(name)
	for _, r := range all {
		if r.kind != acceptAnything {
			return false
		}
	}
	return true
}

// Given tells whether an image that is not pulled may have a name: nil or ErrRefused. Nothing is known of its signatures, so a name that asks for
// one is for pulls only; but of archives the policy may say something else, as containers-policy.json(5) has it.
func (p *Policy) Given(name reference.Named, archive bool) error {
	where, all := p.scope(name)
	where = fmt.Sprintf("scope %q", where)
	if archive && p.archives != nil {
		where, all = "archives", p.archives
	}
	for _, r := range all {
		if r.kind != acceptAnything {
			return fmt.Errorf("policy %s, %s, requirement %s: only a pull can meet it: %w", p.file, where, r.kind, ErrRefused)
		}
	}
	return nil
}

// strict decodes JSON of which every key must be known.
func strict(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after its end")
	}
	return nil
}
