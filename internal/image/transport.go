// SPDX-License-Identifier: Apache-2.0

package image

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	hosts "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/zstd"
)

const (
	attempts   = 5
	firstPause = 200 * time.Millisecond
	// longestPause also caps Retry-After: a registry cannot make a pull sleep for hours.
	longestPause = 30 * time.Second
)

// resolver talks to the registry of name and its mirrors. Credentials go to the registry itself, or to the server that
// they name, and to no mirror or redirect target.
// done closes its connections.
func (s *Store) resolver(ctx context.Context, name reference.Named, a *Auth, stalls *atomic.Int64) (r remotes.Resolver, done func(), err error) {
	user, secret, err := a.credentials()
	if err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	var clients []*http.Client
	domain := reference.Domain(name)
	registryHosts := hosts.ConfigureHosts(ctx, hosts.HostOptions{
		HostDir: s.hostDir,
		Credentials: func(host string) (string, string, error) {
			if !a.isFor(host, domain) {
				return "", "", nil
			}
			return user, secret, nil
		},
		UpdateClient: func(c *http.Client) error {
			if _, done := c.Transport.(*patient); !done {
				c.Transport = &patient{next: c.Transport, stall: s.cfg.StallTimeout, stalls: stalls}
			}
			mu.Lock()
			defer mu.Unlock()
			clients = append(clients, c)
			return nil
		},
	})
	if a != nil && a.RegistryToken != "" {
		registryHosts = withToken(registryHosts, a, domain)
	}
	done = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range clients {
			c.CloseIdleConnections()
		}
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: registryHosts}), done, nil
}

// hostDir finds the folder with a host's hosts.toml.
func (s *Store) hostDir(host string) (string, error) {
	for _, root := range *s.certsDirs.Load() {
		dir, err := hosts.HostDirFromRoot(root)(host)
		if err == nil && dir != "" {
			return dir, nil
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return "", fmt.Errorf("hosts.toml for %s in %s: %w", host, filepath.Clean(root), err)
		}
	}
	return "", errdefs.ErrNotFound
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

func (a *Auth) isFor(host, domain string) bool {
	if a == nil {
		return false
	}
	if a.ServerAddress != "" {
		server := strings.TrimPrefix(strings.TrimPrefix(a.ServerAddress, "https://"), "http://")
		server, _, _ = strings.Cut(server, "/")
		if server == "index.docker.io" {
			server = "docker.io"
		}
		domain = server
	}
	return host == domain || domain == "docker.io" && host == "registry-1.docker.io"
}

// withToken sends a bearer token as it is, to the registry itself only.
func withToken(next docker.RegistryHosts, a *Auth, domain string) docker.RegistryHosts {
	return func(host string) ([]docker.RegistryHost, error) {
		all, err := next(host)
		for i := range all {
			if a.isFor(all[i].Host, domain) {
				all[i].Header = all[i].Header.Clone()
				if all[i].Header == nil {
					all[i].Header = http.Header{}
				}
				all[i].Header.Set("Authorization", "Bearer "+a.RegistryToken)
				all[i].Authorizer = nil
			}
		}
		return all, err
	}
}

// patient retries what may succeed later, and gives up on a body that no byte comes from.
type patient struct {
	next   http.RoundTripper
	stall  time.Duration
	stalls *atomic.Int64 // counts bodies and answers that stalled
}

// RoundTrip implements http.RoundTripper. It retries GET and HEAD only, on broken connections, 429 and 5xx.
func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	pause := firstPause
	for try := 1; ; try++ {
		ctx, cancel := context.WithCancelCause(r.Context())
		header := time.AfterFunc(p.stall, func() { p.stalls.Add(1); cancel(errStalled) })
		resp, err := p.next.RoundTrip(r.WithContext(ctx))
		header.Stop()
		if err != nil && errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		if try == attempts || !worthRetry(r, resp, err) {
			if err != nil {
				cancel(err)
				return nil, err
			}
			resp.Body = newWatched(resp.Body, p, cancel)
			return resp, nil
		}
		wait := min(pause, longestPause)
		if err == nil {
			wait = retryAfter(resp, wait)
			// Read to its end so that the connection can be used again; where that fails, a new one is made.
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
			_ = resp.Body.Close()
		}
		cancel(nil)
		pause *= 2
		select {
		case <-time.After(wait):
		case <-r.Context().Done():
			return nil, context.Cause(r.Context())
		}
	}
}

// CloseIdleConnections lets http.Client's reach the transport below.
func (p *patient) CloseIdleConnections() {
	if c, ok := p.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func worthRetry(r *http.Request, resp *http.Response, err error) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Context().Err() != nil {
		return false
	}
	if err != nil {
		// A refused connection is a dead mirror: the next host is the better try. TLS that is none, or not trusted, stays so.
		var record tls.RecordHeaderError
		var unknown x509.UnknownAuthorityError
		var verify *tls.CertificateVerificationError
		var dns *net.DNSError
		var dial *net.OpError
		return !errors.As(err, &record) && !errors.As(err, &unknown) && !errors.As(err, &verify) && !errors.As(err, &dns) &&
			!(errors.As(err, &dial) && dial.Op == "dial") && !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter is the pause that the registry asks for, within reason.
func retryAfter(resp *http.Response, otherwise time.Duration) time.Duration {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return min(time.Duration(n)*time.Second, longestPause)
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(t), 0), longestPause)
	}
	return otherwise
}

var errStalled = errors.New("no byte came from the registry in time")

// watched is a body that fails when it stalls. A broken connection looks like an unexpected end, at which
// containerd's reader asks for the rest by range.
type watched struct {
	io.ReadCloser
	stall   time.Duration
	timer   *time.Timer
	stalled atomic.Bool
	cancel  context.CancelCauseFunc
}

func newWatched(body io.ReadCloser, p *patient, cancel context.CancelCauseFunc) *watched {
	w := &watched{ReadCloser: body, stall: p.stall, cancel: cancel}
	w.timer = time.AfterFunc(p.stall, func() {
		p.stalls.Add(1)
		w.stalled.Store(true)
		cancel(errStalled)
	})
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.stall)
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	switch {
	case err == nil, errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return n, err
	case w.stalled.Load(), isNetwork(err):
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}

func isNetwork(err error) bool {
	var op net.Error
	return errors.As(err, &op) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errStalled) || errors.Is(err, os.ErrDeadlineExceeded)
}

func isCompression(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.As(err, &corrupt) || errors.Is(err, zstd.ErrMagicMismatch)
}

// redacted is an error whose text has no query strings and no user information of URLs: registries put tokens there.
type redacted struct{ error }

var (
	urlQuery = regexp.MustCompile(`(https?://[^\s"?]*)\?[^\s"]*`)
	urlUser  = regexp.MustCompile(`(https?://)[^\s"/@]*@`)
)

func (r redacted) Error() string { return redact(r.error.Error()) }

func redact(s string) string {
	return urlUser.ReplaceAllString(urlQuery.ReplaceAllString(s, "$1"), "$1")
}

func (r redacted) Unwrap() error { return r.error }
