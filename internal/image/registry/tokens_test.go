// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestALongTokenIsNotKept: hundreds of them would be gigabytes.
func TestALongTokenIsNotKept(t *testing.T) {
	for name, change := range map[string]func(g *guarded){
		"token":     func(g *guarded) { g.good = strings.Repeat("x", maxToken+1) },
		"challenge": func(g *guarded) { g.service = strings.Repeat("x", maxToken+1) },
	} {
		t.Run(name, func(t *testing.T) {
			g, c := newGuarded(t), newClient()
			change(g)
			err := g.resolve(t, c, "x", nil)
			if err == nil || len(err.Error()) > 1024 {
				t.Errorf("got %.2000v", err)
			}
			if len(c.tokens.known) > 0 || len(c.tokens.challenges) > 0 && name == "challenge" {
				t.Errorf("%d tokens and %d challenges are kept", len(c.tokens.known), len(c.tokens.challenges))
			}
		})
	}
}

// guarded is a registry that wants tokens, with its token server.
type guarded struct {
	*httptest.Server
	mu      sync.Mutex
	asked   []string // scopes that tokens were asked for
	good    string   // the token that is taken now
	lives   int      // seconds
	refuse  bool
	service string
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{good: "one", lives: 600, service: "s"}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		switch {
		case r.URL.Path == "/token":
			g.asked = append(g.asked, r.FormValue("scope"))
			if user, _, _ := r.BasicAuth(); user == "wrong" || r.FormValue("username") == "wrong" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":%d}`, g.good, g.good, g.lives)
		case r.Header.Get("Authorization") == "Bearer "+g.good && !g.refuse:
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			w.Header().Set("Content-Length", "1")
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service=%q,scope="repository:%s:pull"`, g.URL, g.service, strings.Split(r.URL.Path, "/")[2]))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *guarded) resolve(t *testing.T, c *Client, repository string, a *Auth) error {
	t.Helper()
	name, err := reference.ParseDockerRef(strings.TrimPrefix(g.URL, "http://") + "/" + repository + ":1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Session(t.Context(), Request{Name: name, Auth: a})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Resolve(t.Context())
	return err
}

func (g *guarded) tokens() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.asked)
}

func TestATokenIsAskedForOncePerScopeAndUser(t *testing.T) {
	g, c := newGuarded(t), newClient()
	u, v := &Auth{Username: "u", Password: "p"}, &Auth{Username: "v", Password: "p"}
	for _, step := range []struct {
		repository string
		as         *Auth
		total      int
	}{{"a", nil, 1}, {"a", nil, 1}, {"b", nil, 2}, {"a", u, 3}, {"a", v, 4}, {"a", u, 4}, {"b", nil, 4}} {
		if err := g.resolve(t, c, step.repository, step.as); err != nil {
			t.Fatal(err)
		}
		if n := g.tokens(); n != step.total {
			t.Errorf("%+v: %d tokens were asked for", step, n)
		}
	}
}

func TestTokensEnd(t *testing.T) {
	g, c := newGuarded(t), newClient()
	now := time.Now()
	c.tokens.now = func() time.Time { return now }
	for _, step := range []struct {
		later time.Duration
		total int
	}{{0, 1}, {500 * time.Second, 1}, {41 * time.Second, 2}} {
		now = now.Add(step.later)
		if err := g.resolve(t, c, "a", nil); err != nil || g.tokens() != step.total {
			t.Errorf("%s later: %d tokens were asked for, %v", step.later, g.tokens(), err)
		}
	}
	g.mu.Lock()
	g.good = "two" // as when the registry has got a new key
	g.mu.Unlock()
	if err := g.resolve(t, c, "a", nil); err != nil || g.tokens() != 3 {
		t.Errorf("a token that is refused is not replaced: %d, %v", g.tokens(), err)
	}
	g.mu.Lock()
	g.refuse = true
	g.mu.Unlock()
	if err := g.resolve(t, c, "a", nil); !errors.Is(err, ErrUnauthorized) || g.tokens() > 5 {
		t.Errorf("%d tokens were asked for, %v", g.tokens(), err)
	}
	if err := g.resolve(t, c, "a", &Auth{Username: "wrong", Password: "secret"}); !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func TestAHostMayAskForSomethingElseThanBefore(t *testing.T) {
	var srv *httptest.Server
	var mu sync.Mutex
	bearer, realm := false, true
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		user, _, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && realm:
			fmt.Fprint(w, `{"token":"tok","access_token":"tok"}`)
		case r.URL.Path == "/token":
			w.WriteHeader(http.StatusGone)
		case bearer && r.Header.Get("Authorization") == "Bearer tok", !bearer && user == "u":
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			w.Header().Set("Content-Length", "1")
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			if bearer {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s"`, srv.URL))
			}
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	g, c := &guarded{Server: srv}, newClient()
	for i, step := range []struct{ bearer, realm bool }{{false, true}, {true, true}, {false, false}, {true, true}, {false, true}} {
		mu.Lock()
		bearer, realm = step.bearer, step.realm
		mu.Unlock()
		c.tokens.forget("tok")
		if err := g.resolve(t, c, "a", &Auth{Username: "u", Password: "p"}); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
	}
}

func TestTokensAreBounded(t *testing.T) {
	k := newTokens()
	for i := range 3 * maxTokens {
		k.put(digestOf(fmt.Sprint(i)), "x", i+1)
		k.remember(digestOf(fmt.Sprint(i)), challenge{}.Challenge)
	}
	if len(k.known) > maxTokens || len(k.challenges) > maxTokens {
		t.Errorf("%d tokens, %d challenges", len(k.known), len(k.challenges))
	}
	if _, ok := k.get(digestOf(fmt.Sprint(3*maxTokens - 1))); !ok {
		t.Error("the latest is gone")
	}
}

func TestOnlyTheRegistryItselfGetsItsHeaders(t *testing.T) {
	var seen http.Header
	var mu sync.Mutex
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = r.Header.Clone()
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
		w.Header().Set("Content-Length", "1")
	}))
	defer elsewhere.Close()
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, elsewhere.URL+"/there", http.StatusTemporaryRedirect) // the same host name, another port
	}))
	defer reg.Close()
	dirs := hosts(t, reg.URL, fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n[host.%q.header]\n  x-secret = \"geheim\"\n", reg.URL, reg.URL))
	name, err := reference.ParseDockerRef(strings.TrimPrefix(reg.URL, "http://") + "/x:1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := newClient().Session(t.Context(), Request{Name: name, Auth: &Auth{Username: "u", Password: "p"}, CertsDirs: dirs})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if seen == nil || seen.Get("Authorization") != "" || seen.Get("X-Secret") != "" || seen.Get("Accept") == "" {
		t.Errorf("got %v", seen)
	}
}

func TestAPasswordDoesNotFollowARedirectOfTheTokenServer(t *testing.T) {
	var got int
	var mu sync.Mutex
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.FormValue("password") != "" || r.Header.Get("Authorization") != "" {
			got++
		}
	}))
	defer elsewhere.Close()
	var reg *httptest.Server
	reg = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s"`, reg.URL))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer reg.Close()
	g := &guarded{Server: reg}
	if err := g.resolve(t, newClient(), "x", &Auth{Username: "u", Password: "p"}); err == nil || got > 0 {
		t.Errorf("the password went on %d times, %v", got, err)
	}
}
