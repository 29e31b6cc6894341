// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Auth are credentials for one pull. They are never logged.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password", instead of the two.
	Auth string
	// IdentityToken is an OAuth refresh token, RegistryToken a bearer token that is sent as it is.
	IdentityToken, RegistryToken string
	// ServerAddress, where given, is the only host that gets them.
	ServerAddress string
}

// credentials are a user's name and secret; an identity token has no user.
func (a *Auth) credentials() (user, secret string, err error) {
	switch {
	case a == nil:
		return "", "", nil
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth != "":
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		user, secret, ok := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
		if err != nil || !ok {
			return "", "", fmt.Errorf("auth.auth is not base64 of user:password: %w", ErrUnauthorized)
		}
		return user, secret, nil
	}
	return "", "", nil
}

// isFor says whether host gets the credentials: the registry of the image itself, or the server that they name. Neither a mirror
// nor the target of a redirect ever does.
func (a *Auth) isFor(host, domain string) bool {
	if a == nil {
		return false
	}
	if a.ServerAddress != "" {
		domain = strings.TrimPrefix(strings.TrimPrefix(a.ServerAddress, "https://"), "http://")
		domain, _, _ = strings.Cut(domain, "/")
	}
	return canonical(host) == canonical(domain)
}

// canonical gives Docker Hub its one name.
func canonical(host string) string {
	if slices.Contains([]string{"index.docker.io", "registry-1.docker.io", "docker.io"}, host) {
		return "docker.io"
	}
	return host
}

// bearer sends a token that the caller has brought, to one host.
type bearer struct{ host, token string }

// Authorize implements docker.Authorizer.
func (b bearer) Authorize(_ context.Context, r *http.Request) error {
	if r.URL.Host == b.host {
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return nil
}

// AddResponses implements docker.Authorizer: a token that is refused once will be again.
func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("registry token is refused: %w", docker.ErrInvalidAuthorization)
}
