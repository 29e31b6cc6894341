// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func newClient() *Client {
	return New(Config{StallTimeout: time.Second, UserAgent: "test"}, slog.New(slog.DiscardHandler))
}

func TestErrorsTellNoSecrets(t *testing.T) {
	for in, want := range map[string]string{
		`Get "https://u:p@host/v2/x?token=secret&a=b": no`: `Get "https://host/v2/x": no`,
		"see http://host/a?b c http://x@y/":                "see http://host/a c http://y/",
		"plain":                                            "plain",
	} {
		if got := Redact(in); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	e := statusError("h", 403, []byte(`{"errors":[{"code":"DENIED","message":"a\u0000b\nhttps://x/?sig=1 `+strings.Repeat("y", 1000)+`"}]}`))
	if len(e.Error()) > 400 || strings.ContainsAny(e.Error(), "\x00\n") || strings.Contains(e.Error(), "sig") || !strings.Contains(e.Error(), "DENIED") {
		t.Errorf("got %q", e)
	}
}

func TestCredentialsHaveOneAddressee(t *testing.T) {
	for _, c := range []struct {
		server, domain, host string
		want                 bool
	}{
		{"", "docker.io", "registry-1.docker.io", true},
		{"", "docker.io", "mirror", false},
		{"", "r:5000", "r:5000", true},
		{"", "r:5000", "r", false},
		{"https://index.docker.io/v1/", "docker.io", "registry-1.docker.io", true},
		{"https://r/v2/", "r", "r", true},
		{"mirror", "r", "mirror", true},
		{"mirror", "r", "r", false},
		{"r.evil", "r", "r", false},
	} {
		if got := (&Auth{ServerAddress: c.server}).isFor(c.host, c.domain); got != c.want {
			t.Errorf("%+v: got %t", c, got)
		}
	}
	if (*Auth)(nil).isFor("r", "r") {
		t.Error("nil")
	}
}

func TestRetryAfterIsCapped(t *testing.T) {
	for v, want := range map[string]time.Duration{"": time.Second, "2": 2 * time.Second, "100000000000": time.Second, "3600": longestPause, "-1": time.Second,
		time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): 0, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat): longestPause} {
		got := retryAfter(&http.Response{Header: http.Header{"Retry-After": {v}}}, time.Second)
		if got != want && (v != "100000000000" || got != longestPause) {
			t.Errorf("%q: %s, want %s", v, got, want)
		}
	}
}

func TestNoSecretGoesOverPlainHTTP(t *testing.T) {
	s := &Session{client: newClient(), hosts: []docker.RegistryHost{{Host: "mirror", Scheme: "http", Client: &http.Client{Transport: &http.Transport{}}},
		{Host: "r", Scheme: "https", Client: &http.Client{Transport: &http.Transport{}}}}}
	s.prepare(func(string) credentials { return credentials{} })
	transportOf := func(n int) *transport { return s.hosts[n].Client.Transport.(*transport) }
	blob := ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1}
	ctx := context.WithValue(t.Context(), blobKey{}, blob)
	first := &http.Request{URL: &url.URL{Scheme: "https", Host: "r", Path: "/v2/x/blobs/" + blob.Digest.String()}}
	request := func(raw string, from *http.Request, auth string) *http.Request {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		if from != nil {
			r.Response = &http.Response{Request: from}
		}
		if auth != "" {
			r.Header.Set("Authorization", auth)
		}
		return r
	}
	for name, c := range map[string]struct {
		r    *http.Request
		want bool
	}{
		"TLS":                         {request("https://r/v2/", nil, "Basic x"), true},
		"this machine":                {request("http://127.0.0.1:5000/v2/", nil, "Basic x"), true},
		"plain":                       {request("http://r/v2/", nil, ""), false},
		"token server":                {request("http://auth/token", nil, "Basic x"), false},
		"redirected blob":             {request("http://store/x", first, ""), true},
		"redirected blob with secret": {request("http://store/x", first, "Basic x"), false},
	} {
		if err := transportOf(1).mayAsk(c.r); (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := transportOf(0).mayAsk(request("http://mirror/v2/", nil, "Basic x")); err != nil {
		t.Errorf("hosts.toml says http: %v", err)
	}
}

func TestAnswersEnd(t *testing.T) {
	endless := func(w http.ResponseWriter) {
		chunk := bytes.Repeat([]byte(" "), 1<<20)
		for range 64 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			endless(w)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+srv.URL+`/token",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer srv.Close()
	name, err := reference.ParseDockerRef(strings.TrimPrefix(srv.URL, "http://") + "/x:1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := newClient().Session(t.Context(), Request{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Resolve(t.Context()); !errors.Is(err, ErrTooLarge) {
		t.Errorf("endless token: %v", err)
	}
}

// slow gives a byte and takes its time.
type slow struct{ every time.Duration }

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(s.every)
	p[0] = 'x'
	return 1, nil
}

func TestOnlyWaitingForTheNetworkCountsAsAStall(t *testing.T) {
	watch := func(r io.Reader) *watched {
		_, cancel := context.WithCancelCause(t.Context())
		w := &watched{body: io.NopCloser(r), host: "h", stall: 100 * time.Millisecond, left: 1 << 30, cancel: cancel, seen: t.Context()}
		w.timer = time.AfterFunc(time.Hour, func() {})
		w.timer.Stop()
		return w
	}
	quick := watch(bytes.NewReader(make([]byte, 1000)))
	p := make([]byte, 100)
	for range 5 {
		if _, err := quick.Read(p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // a slow disk
	}
	trickle := watch(slow{10 * time.Millisecond})
	begin := time.Now()
	for {
		if _, err := trickle.Read(p); err != nil {
			if !Interrupted(err) || !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatal("it never ends")
		}
	}
}

func TestAMirrorThatIsDownIsNotAskedAgainAtOnce(t *testing.T) {
	c := newClient()
	s := &transport{session: &Session{client: c, hosts: []docker.RegistryHost{{Host: "m"}, {Host: "r"}}}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://m/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.mayAsk(r) != nil {
		t.Error("refused before it was down")
	}
	c.markDown("m")
	c.markDown("r") // must not count for the registry itself
	if s.mayAsk(r) == nil {
		t.Error("asked again")
	}
	if r.URL.Host = "r"; s.mayAsk(r) != nil {
		t.Error("the registry itself is refused")
	}
}
