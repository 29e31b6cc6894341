// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

const (
	// maxTokens bounds tokens that are kept, and what is known of hosts.
	maxTokens = 512
	// tokenTime is how long a token lives that does not say so (https://distribution.github.io/distribution/spec/auth/token/), longestToken
	// how long one is kept at most.
	tokenTime    = 60 * time.Second
	longestToken = time.Hour
	clientID     = "berth"
	// maxToken bounds a token, and what a host says of where to get one: more than any has, and than servers take in a header.
	maxToken = 64 << 10
)

// credentials open one host. A token is sent as it is.
type credentials struct{ user, secret, token string }

// access names what a token was given for: to whom, by which host, for what.
type access [sha256.Size]byte

// tokens are the bearer tokens of all sessions, and how hosts want to be asked for them, by host and credentials.
type tokens struct {
	mu         sync.Mutex // guards what follows
	known      map[access]token
	challenges map[access]challenge
	now        func() time.Time
}

type token struct {
	text string
	ends time.Time
}

type challenge struct {
	auth.Challenge
	seen time.Time
}

func newTokens() *tokens {
	return &tokens{known: map[access]token{}, challenges: map[access]challenge{}, now: time.Now}
}

func (t *tokens) get(key access) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.known[key]
	return one.text, ok && t.now().Before(one.ends)
}

// put keeps a token until a tenth of its time is left.
func (t *tokens) put(key access, text string, seconds int) {
	lives := tokenTime
	if seconds > 0 {
		lives = min(time.Duration(min(seconds, 1<<20))*time.Second, longestToken)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	evict(t.known, func(k token) time.Time { return k.ends }, now)
	t.known[key] = token{text, now.Add(lives - lives/10)}
}

func (t *tokens) challenge(key access) (auth.Challenge, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, ok := t.challenges[key]
	return c.Challenge, ok && t.now().Sub(c.seen) < longestToken
}

func (t *tokens) remember(key access, c auth.Challenge) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	evict(t.challenges, func(k challenge) time.Time { return k.seen.Add(longestToken) }, now)
	t.challenges[key] = challenge{c, now}
}

// unlearn forgets what a host wants.
func (t *tokens) unlearn(key access) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.challenges, key)
}

// evict makes room: what has ended goes, or else what ends first.
func evict[V any](all map[access]V, ends func(V) time.Time, now time.Time) {
	if len(all) < maxTokens {
		return
	}
	var first access
	var at time.Time
	for k, v := range all {
		end := ends(v)
		if !now.Before(end) {
			delete(all, k)
		} else if at.IsZero() || end.Before(at) {
			first, at = k, end
		}
	}
	if len(all) >= maxTokens {
		delete(all, first)
	}
}

// authorizer opens one host for one session. Unlike containerd's it shares tokens with other sessions, and drops those that end.
type authorizer struct {
	*tokens

	host   string
	client *http.Client
	header http.Header // of the host, by hosts.toml
	who    credentials
	home   access
	asking sync.Mutex // guards what follows
	told   bool       // the host has told this session what it wants
	scopes []string   // that the host has asked for beside the repository's own: a mirror may call it by another name
	// fetching is held by who asks for a token, so that parallel layers ask once.
	fetching chan struct{}
}

func (t *tokens) authorizer(h *docker.RegistryHost, who credentials) *authorizer {
	a := &authorizer{tokens: t, host: h.Host, client: h.Client, header: h.Header, who: who, fetching: make(chan struct{}, 1)}
	a.home = digestOf(h.Scheme, h.Host, h.Path, who.user, who.secret)
	return a
}

func digestOf(parts ...string) access {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return access(h.Sum(nil))
}

// Authorize implements docker.Authorizer.
func (a *authorizer) Authorize(ctx context.Context, r *http.Request) error {
	if r.URL.Host != a.host {
		return nil
	}
	c, ok := a.challenge(a.home)
	a.asking.Lock()
	told := a.told
	a.asking.Unlock()
	if !ok {
		return nil
	}
	if c.Scheme == auth.BasicAuth {
		if told { // passwords go only to who has just asked for one
			r.SetBasicAuth(a.who.user, a.who.secret)
		}
		return nil
	}
	text, err := a.token(ctx, c)
	if err != nil {
		a.unlearn(a.home)
		if !told && ctx.Err() == nil {
			return nil // the host may want something else by now: its answer tells
		}
		return err
	}
	r.Header.Set("Authorization", "Bearer "+text)
	return nil
}

// token takes a token that is there, or asks for one.
func (a *authorizer) token(ctx context.Context, c auth.Challenge) (string, error) {
	to, err := auth.GenerateTokenOptions(ctx, a.host, a.who.user, a.who.secret, c)
	if err != nil {
		return "", fmt.Errorf("token server: %w", err)
	}
	a.asking.Lock()
	to.Scopes = docker.GetTokenScopes(ctx, a.scopes)
	a.asking.Unlock()
	key := digestOf(string(a.home[:]), to.Realm, to.Service, strings.Join(to.Scopes, " "))
	select {
	case a.fetching <- struct{}{}:
		defer func() { <-a.fetching }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if text, ok := a.get(key); ok {
		return text, nil
	}
	text, seconds, err := a.fetch(ctx, to)
	if err == nil && len(text) > maxToken {
		err = fmt.Errorf("it has %d bytes, more than %d: %w", len(text), maxToken, ErrTooLarge)
	}
	if err != nil {
		return "", fmt.Errorf("fetch token: %w", err)
	}
	a.put(key, text, seconds)
	return text, nil
}

// fetch asks the token server, the way that knows identity tokens first where there are credentials.
func (a *authorizer) fetch(ctx context.Context, to auth.TokenOptions) (text string, seconds int, err error) {
	if to.Secret != "" {
		resp, err := auth.FetchTokenWithOAuth(ctx, a.client, a.header, clientID, to)
		if err == nil {
			return resp.AccessToken, resp.ExpiresInSeconds, nil
		}
		var status remoteserrors.ErrUnexpectedStatus
		// Not all have the way by POST: 404 (GCR), 401 (Artifactory), 400 (ACR), 405.
		if !errors.As(err, &status) || to.Username == "" || status.StatusCode/100 != 4 {
			return "", 0, err
		}
	}
	resp, err := auth.FetchToken(ctx, a.client, a.header, to)
	if err != nil {
		return "", 0, err
	}
	return resp.Token, resp.ExpiresInSeconds, nil
}

// AddResponses implements docker.Authorizer. It is told of the answers to one request so far, the last of which is a 401.
func (a *authorizer) AddResponses(_ context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if last.Request.URL.Host != a.host {
		return fmt.Errorf("%s, which %s redirects to, wants credentials: %w", last.Request.URL.Host, a.host, docker.ErrInvalidAuthorization)
	}
	sent := 0
	for _, r := range responses {
		if text, ok := strings.CutPrefix(r.Request.Header.Get("Authorization"), "Bearer "); ok {
			sent++
			a.forget(text)
		}
	}
	if sent > 1 { // the first may have been an old one
		return fmt.Errorf("token is refused: %w", docker.ErrInvalidAuthorization)
	}
	for _, c := range auth.ParseAuthHeader(last.Header) {
		if size := textOf(c.Parameters); size > maxToken {
			return fmt.Errorf("%s asks for authorization in %d bytes, more than %d: %w", a.host, size, maxToken, docker.ErrInvalidAuthorization)
		}
		switch c.Scheme {
		case auth.BearerAuth:
			a.asking.Lock()
			a.told, a.scopes = true, strings.Fields(c.Parameters["scope"])
			a.asking.Unlock()
			a.remember(a.home, auth.Challenge{Scheme: c.Scheme, Parameters: map[string]string{"realm": c.Parameters["realm"], "service": c.Parameters["service"]}})
			return nil
		case auth.BasicAuth:
			if a.who.user == "" || a.who.secret == "" {
				return fmt.Errorf("no basic auth credentials: %w", docker.ErrInvalidAuthorization)
			}
			a.asking.Lock()
			a.told = true
			a.asking.Unlock()
			a.remember(a.home, c)
			return nil
		}
	}
	return fmt.Errorf("way of authorization that is asked for: %w", errdefs.ErrNotImplemented)
}

func textOf(parameters map[string]string) (n int) {
	for key, value := range parameters {
		n += len(key) + len(value)
	}
	return n
}

// forget drops a token that was refused, whatever it was for.
func (t *tokens) forget(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, v := range t.known {
		if v.text == text {
			delete(t.known, k)
		}
	}
}
