// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/distribution/reference"

	"github.com/berth-run/berth/internal/linux/fsys"
)

const maxCredentialFile = 4 << 20 // bytes

// credentialFile is docker's config.json, as `docker login`, podman's auth.json and kubernetes.io/dockerconfigjson secrets have it.
type credentialFile struct {
	Auths map[string]struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

// configured looks for credentials in the files, in their order; nil without any. In each file the helper of the registry comes first, then the
// entry that fits best, then the store. Files that are missing are passed over: a node may get them later.
func (c *Client) configured(ctx context.Context, name reference.Named) (*Auth, error) {
	for _, file := range c.cfg.CredentialFiles {
		f, err := readCredentials(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a, err := c.from(ctx, f, name)
		if err != nil {
			return nil, fmt.Errorf("credentials for %s of %s: %w", reference.Domain(name), file, err)
		}
		if a != nil {
			return a, nil
		}
	}
	return nil, nil
}

func readCredentials(file string) (*credentialFile, error) {
	raw, err := fsys.ReadFile(file, maxCredentialFile)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	var f credentialFile
	if json.Unmarshal(raw, &f) != nil { // the error would quote what it cannot read
		return nil, fmt.Errorf("read credentials %s: it is not in the form of docker's config.json", file)
	}
	return &f, nil
}

func (c *Client) from(ctx context.Context, f *credentialFile, name reference.Named) (*Auth, error) {
	domain := reference.Domain(name)
	for key, helper := range f.CredHelpers {
		if host, _ := keyParts(key); canonical(host) == canonical(domain) {
			return c.ask(ctx, helper, key)
		}
	}
	best, rank := "", 0
	for key := range f.Auths {
		if n := fits(key, name); n > rank || n == rank && n > 0 && key < best {
			best, rank = key, n
		}
	}
	if e := f.Auths[best]; rank > 0 && (e.Username != "" || e.Auth != "" || e.IdentityToken != "" || e.RegistryToken != "") {
		return &Auth{Username: e.Username, Password: e.Password, Auth: e.Auth, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}, nil
	}
	if f.CredsStore == "" {
		return nil, nil
	}
	if canonical(domain) == "docker.io" {
		domain = "https://index.docker.io/v1/" // what `docker login` stores Docker Hub under
	}
	return c.ask(ctx, f.CredsStore, domain)
}

// keyParts takes apart a key such as https://index.docker.io/v1/ or registry.example/team.
func keyParts(key string) (host, repository string) {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, repository, _ = strings.Cut(key, "/")
	repository = strings.Trim(repository, "/")
	if repository == "v1" || repository == "v2" { // the old ways to name a whole registry
		repository = ""
	}
	return host, repository
}

// fits tells how well a key is for an image: 0 is not at all. As with the kubelet, a host may have * for (parts of) its labels, and a path is for
// what is below it; the longer fits better.
func fits(key string, name reference.Named) int {
	host, repository := keyParts(key)
	domain := reference.Domain(name)
	if canonical(host) != canonical(domain) && !globs(host, domain) {
		return 0
	}
	if repository != "" && repository != reference.Path(name) && !strings.HasPrefix(reference.Path(name), repository+"/") {
		return 0
	}
	n := 2 * (len(repository) + 1)
	if !strings.Contains(host, "*") {
		n++
	}
	return n
}

func globs(pattern, domain string) bool {
	want, got := strings.Split(pattern, "."), strings.Split(domain, ".")
	if !strings.Contains(pattern, "*") || len(want) != len(got) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], got[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
