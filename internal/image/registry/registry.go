// SPDX-License-Identifier: Apache-2.0

// Package registry talks to image registries for package image, its only user: hosts.toml mirrors, credentials, retries,
// stalls and limits, around containerd's resolver. It stores nothing.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 30 * time.Second
	// idleConns are kept per host, so that parallel layers and the next ones share connections.
	idleConns = 16
)

// Config says how to talk.
type Config struct {
	// StallTimeout is how long the registry may send next to nothing before the connection is given up.
	StallTimeout time.Duration
	// UserAgent is how requests introduce themselves.
	UserAgent string
	// MaxPerRegistry bounds blobs that are fetched from one registry at a time; 0: nothing of its own does.
	MaxPerRegistry int
	// PartSize is how much of a large blob one request asks for; 0: 8 MiB.
	PartSize int64
	// CredentialFiles are asked when a Request has no credentials: in the form of docker's config.json.
	CredentialFiles []string
	// HelperTime bounds a credential helper; 0: 10 s.
	HelperTime time.Duration
	// Pause is what the first retry of a request waits, the next ones longer; 0: 200 ms.
	Pause time.Duration
}

// Client talks to all registries.
type Client struct {
	cfg   Config
	log   *slog.Logger
	downs downs
	// buffers are parts of blobs in memory.
	buffers *semaphore.Weighted
	limits  limits
	tokens  *tokens
}

// New makes a Client.
func New(cfg Config, log *slog.Logger) *Client {
	if cfg.PartSize == 0 {
		cfg.PartSize = partSize
	}
	if cfg.HelperTime == 0 {
		cfg.HelperTime = helperTime
	}
	if cfg.Pause == 0 {
		cfg.Pause = firstPause
	}
	return &Client{cfg: cfg, log: log, buffers: semaphore.NewWeighted(maxBuffers), tokens: newTokens()}
}

// Request says which repository a Session is for.
type Request struct {
	Name reference.Named
	Auth *Auth
	// CertsDirs hold hosts.toml folders in containerd's format; the first that knows the registry counts.
	CertsDirs []string
}

// Session is one pull's talk to one registry and its mirrors. hosts.toml is read when it begins. Close it.
type Session struct {
	client   *Client
	name     reference.Named
	hosts    []docker.RegistryHost // the last is the registry itself, the others are mirrors
	direct   atomic.Bool
	whole    atomic.Bool // a host sends no parts of blobs
	limit    *limit
	resolver remotes.Resolver
	bases    []*http.Transport
}

// Session begins to talk; it sends nothing yet.
func (c *Client) Session(ctx context.Context, r Request) (*Session, error) {
	domain := reference.Domain(r.Name)
	if r.Auth == nil {
		var err error
		if r.Auth, err = c.configured(ctx, r.Name); err != nil {
			return nil, err
		}
	}
	user, secret, err := r.Auth.credentials()
	if err != nil {
		return nil, err
	}
	s := &Session{client: c, name: r.Name}
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir: func(host string) (string, error) { return hostDir(r.CertsDirs, host) },
		UpdateClient: func(hc *http.Client) error {
			// The first call is for the transport that those of single hosts are copied from; they may have a dial timeout of their own.
			base, ok := hc.Transport.(*http.Transport)
			if !ok {
				return nil
			}
			if s.bases = append(s.bases, base); len(s.bases) == 1 {
				base.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second, FallbackDelay: 300 * time.Millisecond}).DialContext
				base.ResponseHeaderTimeout = min(headerTimeout, c.cfg.StallTimeout)
				base.MaxIdleConnsPerHost, base.MaxIdleConns = idleConns, 4*idleConns
			}
			return nil
		},
	})(domain)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", domain, err)
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("registry %s: hosts.toml leaves no host to ask: %w", domain, ErrUnavailable)
	}
	s.hosts = hosts
	s.prepare(func(host string) (who credentials) {
		if r.Auth.isFor(host, domain) {
			who = credentials{user, secret, r.Auth.RegistryToken}
		}
		return who
	})
	s.limit = c.limits.take(domain, c.cfg.MaxPerRegistry)
	s.resolver = docker.NewResolver(docker.ResolverOptions{Hosts: s.registryHosts, Headers: http.Header{"User-Agent": {c.cfg.UserAgent}}})
	return s, nil
}

// prepare puts our transport below each host's client, and what opens the host into its requests.
func (s *Session) prepare(of func(host string) credentials) {
	for i := range s.hosts {
		h := &s.hosts[i]
		_, usual := h.Client.Transport.(*http.Transport) // else it is containerd's fall-back to HTTP, for hosts that hosts.toml says http:// of
		client := *h.Client                              // hosts may share theirs
		client.Transport = &transport{next: h.Client.Transport, session: s, plain: h.Scheme == "http" || !usual}
		h.Client = &client
		if who := of(h.Host); who.token != "" {
			h.Authorizer = bearer{h.Host, who.token}
		} else {
			h.Authorizer = s.client.tokens.authorizer(h, who)
		}
	}
}

func (s *Session) registryHosts(string) ([]docker.RegistryHost, error) {
	if s.direct.Load() {
		return s.hosts[len(s.hosts)-1:], nil
	}
	return s.hosts, nil
}

// isOrigin says whether nobody else can be asked instead of host. That is so of the registry itself, and of what it refers to.
func (s *Session) isOrigin(host string) bool {
	for _, h := range s.hosts[:len(s.hosts)-1] {
		if h.Host == host {
			return s.direct.Load()
		}
	}
	return true
}

// GoDirect asks no mirror any more: one has sent something wrong.
func (s *Session) GoDirect() { s.direct.Store(true) }

// Resolve asks which manifest or index the name stands for now.
func (s *Session) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	seen := &notes{}
	_, desc, err := s.resolver.Resolve(context.WithValue(ctx, notesKey{}, seen), s.name.String())
	if errdefs.IsNotImplemented(err) || err == nil && desc.MediaType == images.MediaTypeDockerSchema1Manifest {
		return desc, errSchema1
	}
	if err != nil {
		return desc, seen.sum(ctx, err)
	}
	return desc, nil
}

var errSchema1 = errors.New("manifest is of Docker's schema 1, which was retired in 2019: push the image again with a tool of today")

// IsSchema1 says whether Resolve failed because of the manifest's age.
func IsSchema1(err error) bool { return errors.Is(err, errSchema1) }

// Fetch opens a manifest, index or blob. The reader can seek, which asks for the rest by range. Its errors are of
// this package.
func (s *Session) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadSeekCloser, error) {
	seen := &notes{}
	// URLs are for layers that a registry must not have. Whoever writes a manifest would choose what this node connects to.
	desc.URLs, desc.Data, desc.Annotations = nil, nil, nil
	ctx = context.WithValue(context.WithValue(ctx, notesKey{}, seen), blobKey{}, desc)
	f, err := s.resolver.Fetcher(ctx, s.name.String())
	if err != nil {
		return nil, seen.sum(ctx, err)
	}
	body, err := f.Fetch(ctx, desc)
	if err != nil {
		return nil, seen.sum(ctx, err)
	}
	rs, ok := body.(io.ReadSeekCloser)
	if !ok {
		return nil, errors.Join(fmt.Errorf("fetch %s: reader %T cannot seek", desc.Digest, body), body.Close())
	}
	return &fetched{ReadSeekCloser: rs, ctx: ctx, seen: seen}, nil
}

// fetched opens its connection at the first read, so that is where errors come from.
type fetched struct {
	io.ReadSeekCloser
	ctx  context.Context
	seen *notes
}

func (f *fetched) Read(p []byte) (int, error) {
	n, err := f.ReadSeekCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		if errdefs.IsFailedPrecondition(err) {
			return n, err // more bytes than the size that was promised
		}
		return n, f.seen.sum(f.ctx, err)
	}
	return n, err
}

// Close gives up the connections that are kept for later.
func (s *Session) Close() {
	s.client.limits.give(s.limit)
	for _, base := range s.bases {
		base.CloseIdleConnections()
	}
}

// hostDir finds the folder with a host's hosts.toml.
func hostDir(roots []string, host string) (string, error) {
	for _, root := range roots {
		dir, err := config.HostDirFromRoot(root)(host)
		if err == nil && dir != "" {
			return dir, nil
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return "", fmt.Errorf("hosts.toml for %s in %s: %w", host, filepath.Clean(root), err)
		}
	}
	return "", errdefs.ErrNotFound
}
