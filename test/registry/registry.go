// SPDX-License-Identifier: Apache-2.0

// Package registry serves images from memory on 127.0.0.1 and fails on demand. The images are made on the
// spot from the machine's static busybox, so that no test needs a network. Tests and the benchmarks use it.
package registry

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Server is one registry with a port of its own.
type Server struct {
	// Host is what stands before the first slash of a reference: 127.0.0.1:port.
	Host string

	images http.Handler
	http   *http.Server

	mu       sync.Mutex // guards what follows
	faults   []*Fault
	requests []string
	auth     *Auth
}

// Auth makes the registry ask for credentials.
type Auth struct {
	Username, Password string
	// IdentityToken, if set, is the refresh token that the token endpoint takes.
	IdentityToken string
	// Bearer sends clients to the token endpoint; otherwise basic authentication is asked for.
	Bearer bool
}

// New listens and serves until Close.
func New() (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for registry: %w", err)
	}
	quiet := log.New(io.Discard, "", 0)
	s := &Server{Host: l.Addr().String(), images: ggcr.New(ggcr.Logger(quiet))}
	s.http = &http.Server{Handler: s, ErrorLog: quiet}
	go s.http.Serve(l)
	return s, nil
}

// NewWithBusybox is New with an image to run, and its reference.
func NewWithBusybox() (s *Server, ref string, err error) {
	im, err := Busybox()
	if err != nil {
		return nil, "", err
	}
	if s, err = New(); err != nil {
		return nil, "", err
	}
	if ref, _, err = s.Push("busybox:1", im); err != nil {
		s.Close()
		return nil, "", err
	}
	return s, ref, nil
}

// Start is New for a test, closed at its end.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s, err := New()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Close ends the server and each of its connections.
func (s *Server) Close() { s.http.Close() }

// Push stores an image (or index) as repository:tag and returns its full reference and digest.
func (s *Server) Push(repoTag string, image any) (ref, digest string, err error) {
	ref = s.Host + "/" + repoTag
	to, err := name.ParseReference(ref)
	if err != nil {
		return "", "", fmt.Errorf("push %s: %w", ref, err)
	}
	var hash v1.Hash
	switch im := image.(type) {
	case v1.Image:
		if err = remote.Write(to, im); err == nil {
			hash, err = im.Digest()
		}
	case v1.ImageIndex:
		if err = remote.WriteIndex(to, im); err == nil {
			hash, err = im.Digest()
		}
	default:
		err = fmt.Errorf("%T is no image", image)
	}
	if err != nil {
		return "", "", fmt.Errorf("push %s: %w", ref, err)
	}
	return ref, hash.String(), nil
}

// MustPush is Push for a test; it returns the reference by tag and the one by digest.
func (s *Server) MustPush(tb testing.TB, repoTag string, image any) (ref, byDigest string) {
	tb.Helper()
	ref, digest, err := s.Push(repoTag, image)
	if err != nil {
		tb.Fatal(err)
	}
	repo, _, _ := strings.Cut(repoTag, ":")
	return ref, s.Host + "/" + repo + "@" + digest
}

// SetAuth asks for credentials from now on; nil asks for none.
func (s *Server) SetAuth(a *Auth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.auth = a
}

// Requests counts the requests so far whose "METHOD path" contains the text.
func (s *Server) Requests(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(s.requests), func(r string) bool { return !strings.Contains(r, text) }))
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	what := r.Method + " " + r.URL.Path
	s.requests = append(s.requests, what)
	auth := s.auth
	var fault *Fault
	for _, f := range s.faults {
		if strings.Contains(what, f.Match) && (f.Times == 0 || f.seen < f.Times) {
			f.seen++
			fault = f
			break
		}
	}
	s.mu.Unlock()
	next := s.images
	if auth != nil {
		next = auth.guard(s.Host, s.images)
	}
	if fault != nil {
		fault.Do(w, r, next)
		return
	}
	next.ServeHTTP(w, r)
}

const bearerToken = "let-me-in"

// guard stands before the images: it hands out tokens and turns requests without credentials away.
func (a *Auth) guard(host string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			a.token(w, r)
			return
		}
		want, challenge := "Basic "+a.basic(), `Basic realm="test"`
		if a.Bearer {
			want, challenge = "Bearer "+bearerToken, fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, host)
		}
		if r.Header.Get("Authorization") == want {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", challenge)
		apiError(w, http.StatusUnauthorized, "UNAUTHORIZED")
	})
}

func (a *Auth) basic() string {
	return base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
}

// token answers the two ways to get one: basic authentication (GET, or the POST that sends a password), and
// an identity token (POST).
func (a *Auth) token(w http.ResponseWriter, r *http.Request) {
	ok := r.Header.Get("Authorization") == "Basic "+a.basic()
	if r.Method == http.MethodPost {
		switch r.PostFormValue("grant_type") {
		case "refresh_token":
			ok = a.IdentityToken != "" && r.PostFormValue("refresh_token") == a.IdentityToken
		case "password":
			ok = r.PostFormValue("username") == a.Username && r.PostFormValue("password") == a.Password
		}
	}
	if !ok {
		apiError(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return
	}
	json.NewEncoder(w).Encode(map[string]any{"token": bearerToken, "access_token": bearerToken, "expires_in": 3600})
}

func apiError(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"test registry says %d"}]}`, code, status)
}
