// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distribution/reference"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func named(t *testing.T, ref string) reference.Named {
	t.Helper()
	name, err := reference.ParseDockerRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTheMostSpecificScopeCounts(t *testing.T) {
	got := scopes(named(t, "a.b.example:5000/team/app:1"))
	want := []string{"a.b.example:5000/team/app:1", "a.b.example:5000/team/app", "a.b.example:5000/team", "a.b.example:5000", "*.b.example", "*.example", ""}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := scopes(named(t, "busybox")); got[1] != "docker.io/library/busybox" {
		t.Errorf("got %q", got)
	}
	p, err := Load(write(t, "policy.json", `{"default":[{"type":"reject"}],"transports":{"docker":{
		"r.example":[{"type":"insecureAcceptAnything"}],"r.example/team":[{"type":"reject"}],"r.example/team/app:1":[{"type":"insecureAcceptAnything"}],
		"*.wild.example":[{"type":"insecureAcceptAnything"}]},"docker-daemon":{"":[{"type":"insecureAcceptAnything"}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for ref, open := range map[string]bool{"r.example/x": true, "r.example/team/x": false, "r.example/team/app:1": true, "r.example/team/app:2": false,
		"other/x": false, "a.wild.example/x": true, "wild.example/x": false, "r.example:5000/x": false} {
		if got := p.Open(named(t, ref)); got != open {
			t.Errorf("%s: open is %t", ref, got)
		}
		err := p.Check(t.Context(), named(t, ref), nil, nil)
		if open != (err == nil) || !open && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "policy.json")) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestPoliciesThatProtectLessThanTheySeemAreNotValid(t *testing.T) {
	key := write(t, "key.pem", "no key")
	for kind, text := range map[string]string{
		"no JSON":              `{`,
		"more after its end":   `{"default":[{"type":"reject"}]} {}`,
		"no default":           `{"transports":{}}`,
		"empty scope":          `{"default":[{"type":"reject"}],"transports":{"docker":{"r":[]}}}`,
		"unknown key":          `{"default":[{"type":"reject"}],"defualt":[]}`,
		"unknown type":         `{"default":[{"type":"accept"}]}`,
		"more than its type":   `{"default":[{"type":"insecureAcceptAnything","keyPath":"x"}]}`,
		"no key":               `{"default":[{"type":"sigstoreSigned"}]}`,
		"two ways":             `{"default":[{"type":"sigstoreSigned","keyData":"eA==","trustedRoot":"x"}]}`,
		"key is missing":       `{"default":[{"type":"sigstoreSigned","keyPath":"/is/not/there"}]}`,
		"key is none":          `{"default":[{"type":"sigstoreSigned","keyPath":"` + key + `"}]}`,
		"pki":                  `{"default":[{"type":"sigstoreSigned","pki":{}}]}`,
		"fulcio without Rekor": `{"default":[{"type":"sigstoreSigned","fulcio":{"caData":"eA==","oidcIssuer":"i","subjectEmail":"e"}}]}`,
		"root without who":     `{"default":[{"type":"sigstoreSigned","trustedRoot":"` + key + `"}]}`,
		"unknown identity":     `{"default":[{"type":"sigstoreSigned","keyData":"eA==","signedIdentity":{"type":"any"}}]}`,
		"identity lacks":       `{"default":[{"type":"sigstoreSigned","keyData":"eA==","signedIdentity":{"type":"exactReference","dockerReference":"r/x"}}]}`,
	} {
		if _, err := Load(write(t, "policy.json", text)); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestSignedIdentity(t *testing.T) {
	digested := "r.example/app@sha256:" + strings.Repeat("a", 64)
	for _, c := range []struct {
		id           identity
		name, signed string
		want         bool
	}{
		{identity{Type: matchExact}, "r.example/app:1", "r.example/app:1", true},
		{identity{Type: matchExact}, "r.example/app:1", "r.example/app:2", false},
		{identity{Type: matchExact}, digested, "r.example/app:1", false},
		{identity{Type: matchDigestOr}, digested, "r.example/app:1", true},
		{identity{Type: matchDigestOr}, digested, "r.example/other:1", false},
		{identity{Type: matchDigestOr}, "r.example/app:1", "r.example/app", false},
		{identity{Type: matchRepository}, "r.example/app:1", "r.example/app", true},
		{identity{Type: matchRepository}, "r.example/app:1", "r.example/app2", false},
		{identity{Type: matchRepository}, "r.example/app:1", "", false},
		{identity{Type: matchRepository}, "r.example/app:1", "no name!", false},
		{identity{Type: matchAny}, "r.example/app:1", "", true},
		{identity{Type: exactReference, DockerReference: "up.example/app:1"}, "r.example/app:1", "up.example/app:1", true},
		{identity{Type: exactReference, DockerReference: "up.example/app:1"}, "r.example/app:1", "r.example/app:1", false},
		{identity{Type: exactRepository, DockerRepository: "up.example/app"}, "r.example/app:1", "up.example/app:7", true},
		{identity{Type: remapIdentity, Prefix: "r.example", SignedPrefix: "up.example/m"}, "r.example/app:1", "up.example/m/app:1", true},
		{identity{Type: remapIdentity, Prefix: "r.example", SignedPrefix: "up.example"}, "r.example2/app:1", "r.example2/app:1", true},
		{identity{Type: remapIdentity, Prefix: "r.example", SignedPrefix: "up.example"}, "r.example/app:1", "r.example/app:1", false},
	} {
		if err := c.id.fits(named(t, c.name), c.signed); (err == nil) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add(`{"default":[{"type":"sigstoreSigned","keyData":"eA==","signedIdentity":{"type":"matchAny"}}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Load(write(t, "policy.json", text))
		if (p == nil) == (err == nil) {
			t.Errorf("%v, %v", p, err)
		}
	})
}

func TestNamesThatAreGivenWithoutAPull(t *testing.T) {
	const registries = `"docker":{"open.example":[{"type":"insecureAcceptAnything"}],"signed.example":[{"type":"signedBy","keyPath":"/k"}]}`
	for policy, want := range map[string]map[string][2]bool{ // of tags, of archives
		registries: {"open.example/x": {true, true}, "signed.example/x": {false, false}, "other/x": {false, false}},
		registries + `,"oci-archive":{"":[{"type":"insecureAcceptAnything"}]}`:                                           {"open.example/x": {true, true}, "signed.example/x": {false, true}},
		registries + `,"docker-archive":{"":[{"type":"reject"}]}`:                                                        {"open.example/x": {true, false}},
		registries + `,"docker-archive":{"":[{"type":"reject"}]},"oci-archive":{"":[{"type":"insecureAcceptAnything"}]}`: {"open.example/x": {true, false}},
		registries + `,"docker-archive":{"/some/path":[{"type":"insecureAcceptAnything"}]}`:                              {"signed.example/x": {false, false}},
	} {
		p, err := Load(write(t, "policy.json", `{"default":[{"type":"reject"}],"transports":{`+policy+`}}`))
		if err != nil {
			t.Fatal(err)
		}
		for ref, of := range want {
			for i, archive := range []bool{false, true} {
				err := p.Given(named(t, ref), archive)
				if of[i] != (err == nil) || !of[i] && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "policy.json")) {
					t.Errorf("%s\n%s, archive %t: %v", policy, ref, archive, err)
				}
			}
		}
	}
}
