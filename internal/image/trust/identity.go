// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// identity compares the name that a signature is for with the name that an image is pulled by.
type identity struct {
	Type             string `json:"type"`
	DockerReference  string `json:"dockerReference,omitempty"`
	DockerRepository string `json:"dockerRepository,omitempty"`
	Prefix           string `json:"prefix,omitempty"`
	SignedPrefix     string `json:"signedPrefix,omitempty"`
}

const (
	matchExact      = "matchExact"
	matchDigestOr   = "matchRepoDigestOrExact" // the default
	matchRepository = "matchRepository"
	exactReference  = "exactReference"
	exactRepository = "exactRepository"
	remapIdentity   = "remapIdentity"
	// matchAny is ours: the key alone is trusted for whatever it signs in the scope. Bundles name no repository and are taken with it only.
	matchAny = "matchAny"
)

func parseIdentity(raw json.RawMessage) (identity, error) {
	id := identity{Type: matchDigestOr}
	if len(raw) == 0 || string(raw) == "null" {
		return id, nil
	}
	if err := strict(raw, &id); err != nil {
		return id, fmt.Errorf("signedIdentity: %w", err)
	}
	var missing bool
	switch id.Type {
	case matchExact, matchDigestOr, matchRepository, matchAny:
		if id != (identity{Type: id.Type}) {
			return id, fmt.Errorf("signedIdentity: %s takes no more than its type", id.Type)
		}
		return id, nil
	case exactReference:
		named, err := reference.ParseNormalizedNamed(id.DockerReference)
		missing = err != nil || reference.IsNameOnly(named)
	case exactRepository:
		_, err := reference.ParseNormalizedNamed(id.DockerRepository)
		missing = err != nil
	case remapIdentity:
		missing = id.Prefix == "" || id.SignedPrefix == ""
	default:
		return id, fmt.Errorf("signedIdentity: type %q is not known", id.Type)
	}
	if missing {
		return id, fmt.Errorf("signedIdentity: %s lacks what it compares with", id.Type)
	}
	return id, nil
}

// fits compares; signed is what a signature says, "" when it says nothing.
func (id identity) fits(name reference.Named, signed string) error {
	if id.Type == matchAny {
		return nil
	}
	if signed == "" {
		return fmt.Errorf("the signature names no repository, which signedIdentity %s asks for (%s takes it)", id.Type, matchAny)
	}
	of, err := reference.ParseNormalizedNamed(signed)
	if err != nil {
		return errors.New("the signature is for a name that is none")
	}
	want := name
	switch id.Type {
	case exactReference:
		want, err = reference.ParseNormalizedNamed(id.DockerReference)
	case exactRepository:
		want, err = reference.ParseNormalizedNamed(id.DockerRepository)
	case remapIdentity:
		want, err = id.remap(name)
	}
	if err != nil {
		return fmt.Errorf("signedIdentity: %w", err)
	}
	ok := of.Name() == want.Name()
	switch id.Type {
	case matchExact, exactReference:
		ok = ok && of.String() == want.String()
	case matchDigestOr, remapIdentity:
		// Who asks by digest knows what they get; the tag that it was signed by does not matter then.
		if _, digested := want.(reference.Digested); !digested {
			ok = ok && of.String() == want.String()
		}
	}
	if !ok {
		return fmt.Errorf("the signature is for %s", of)
	}
	return nil
}

// remap puts the signed prefix in the place of the one that the name has; a name without it stays.
func (id identity) remap(name reference.Named) (reference.Named, error) {
	full := name.String()
	if full != id.Prefix && !(strings.HasPrefix(full, id.Prefix) && strings.ContainsRune("/:@", rune(full[len(id.Prefix)]))) {
		return name, nil
	}
	return reference.ParseNormalizedNamed(id.SignedPrefix + full[len(id.Prefix):])
}
