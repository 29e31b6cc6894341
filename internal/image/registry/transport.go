// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	attempts   = 5
	firstPause = 200 * time.Millisecond
	// longestPause also caps Retry-After: a registry cannot make a pull sleep for hours.
	longestPause = 30 * time.Second
	// MaxDocument bounds manifests, indexes, configurations, tokens and error texts.
	MaxDocument = 8 << 20
	// leastProgress is what must come within a stall timeout: a byte a minute is no download.
	leastProgress = 4 << 10
)

// transport stands below containerd's resolver. It retries what may succeed later, so that the resolver need not (it would do so without a
// pause); it bounds answers, gives up on bodies that stall, passes over mirrors that are down, and sends no secret in the clear.
type transport struct {
	next    http.RoundTripper
	session *Session
	plain   bool // hosts.toml allows plain HTTP for the host that it is for, and that host's token server
}

// RoundTrip implements http.RoundTripper. What cannot succeed comes back as *Error and not as a response, or the resolver
// would try again.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	host, origin := r.URL.Host, t.session.isOrigin(r.URL.Host)
	seen := notesOf(r.Context())
	fail := func(e *Error) (*http.Response, error) {
		seen.add(e, origin)
		return nil, e
	}
	if err := t.mayAsk(r); err != nil {
		return fail(err)
	}
	r = narrow(asIs(stripped(r)))
	pause := t.session.client.cfg.Pause
	for try := 1; ; try++ {
		resp, err := t.once(r)
		if r.Context().Err() != nil && err != nil {
			return nil, context.Cause(r.Context())
		}
		var e *Error
		wait := pause + rand.N(pause/2)
		switch {
		case err != nil:
			e = &Error{host: host, text: Redact(err.Error()), class: ErrUnavailable}
		case worthRetry(resp.StatusCode), resp.StatusCode == http.StatusUnauthorized && strings.HasPrefix(r.Header.Get("Authorization"), "Basic "):
			// A password that is wrong once is wrong again; asking five times locks accounts.
			wait = retryAfter(resp, wait)
			e = readError(host, resp)
		case forPart(r) && resp.StatusCode == http.StatusOK:
			resp.Body.Close()
			t.session.whole.Store(true)
			return fail(&Error{host: host, text: "sends all of a blob where a part is asked for", class: ErrNoRange})
		case strings.Contains(resp.Header.Get("Content-Encoding"), "zstd"):
			resp.Body.Close()
			return fail(&Error{host: host, text: "answer has the content encoding zstd, which was not asked for", class: ErrUnavailable})
		default:
			if resp.StatusCode >= http.StatusBadRequest && resp.StatusCode != http.StatusUnauthorized {
				seen.add(statusError(host, resp.StatusCode, nil), origin)
			}
			return resp, nil
		}
		if err != nil && !origin {
			t.session.client.markDown(host)
		}
		if try == attempts || !origin || errors.Is(e, ErrUnauthorized) || err != nil && !worthReconnect(err) || !rewind(r) {
			return fail(e)
		}
		pause = min(pause*2, longestPause)
		select {
		case <-time.After(wait):
		case <-r.Context().Done():
			return nil, context.Cause(r.Context())
		}
	}
}

// once sends the request; the answer's body is bounded and watched.
func (t *transport) once(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	w := &watched{body: resp.Body, host: r.URL.Host, stall: t.session.client.cfg.StallTimeout, left: bound(r), cancel: cancel, seen: r.Context()}
	w.timer = time.AfterFunc(time.Hour, func() { cancel(errStalled) })
	w.timer.Stop()
	resp.Body = w
	return resp, nil
}

// rewind makes a request ready to be sent again.
func rewind(r *http.Request) bool {
	if r.Body == nil || r.Body == http.NoBody {
		return true
	}
	if r.GetBody == nil {
		return false
	}
	body, err := r.GetBody()
	r.Body = body
	return err == nil
}

// worthRetry knows the statuses that pass.
func worthRetry(code int) bool {
	return slices.Contains([]int{http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout}, code)
}

// worthReconnect knows the transport errors that pass: a connection that broke, a host that is slow. A refused connection, a name that
// does not exist and a certificate that is not trusted stay as they are for the time of a pull.
func worthReconnect(err error) bool {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return dial.Timeout()
	}
	var op net.Error
	return errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// retryAfter is the pause that the registry asks for, within reason.
func retryAfter(resp *http.Response, otherwise time.Duration) time.Duration {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return min(time.Duration(min(n, 3600))*time.Second, longestPause)
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(t), 0), longestPause)
	}
	return otherwise
}

// readError turns an answer into an error and frees its connection.
func readError(host string, resp *http.Response) *Error {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		body = nil // the status says enough
	}
	return statusError(host, resp.StatusCode, body)
}

type blobKey struct{}

// bound is how many bytes an answer to r may have: a blob's are known, all else is a document.
func bound(r *http.Request) int64 {
	first := asked(r)
	blob, ok := r.Context().Value(blobKey{}).(ocispec.Descriptor)
	if ok && strings.HasSuffix(first.URL.Path, "/"+blob.Digest.String()) && !first.URL.Query().Has("scope") {
		return max(blob.Size, 0) + MaxDocument
	}
	return MaxDocument
}

var errStalled = errors.New("stalled")

// watched is a body that ends with an error when the registry sends too little in the time that somebody waits for it, or too much. Time
// that the reader spends elsewhere, at a slow disk for example, does not count.
type watched struct {
	body   io.ReadCloser
	host   string
	stall  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	seen   context.Context // the request's: for notes, and to tell its end from a stall
	left   int64

	waited time.Duration // since the last leastProgress bytes
	got    int
}

func (w *watched) Read(p []byte) (int, error) {
	begin := time.Now()
	w.timer.Reset(w.stall - w.waited)
	n, err := w.body.Read(p)
	stopped := w.timer.Stop()
	w.left -= int64(n)
	w.waited += time.Since(begin)
	if w.got += n; w.got >= leastProgress {
		w.waited, w.got = 0, 0
	}
	switch {
	case w.left < 0:
		return 0, w.fail(&Error{host: w.host, text: "answer does not end", class: ErrTooLarge})
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return n, err
	case w.seen.Err() != nil:
		return n, context.Cause(w.seen)
	case !stopped, w.waited >= w.stall:
		w.cancel(errStalled)
		return n, w.fail(&Error{host: w.host, text: fmt.Sprintf("stalled: fewer than %d bytes in %s", leastProgress, w.stall), class: ErrUnavailable, broken: true})
	case err != nil:
		return n, w.fail(&Error{host: w.host, text: "answer broke off: " + Redact(err.Error()), class: ErrUnavailable, broken: true})
	}
	return n, nil
}

func (w *watched) fail(e *Error) error {
	notesOf(w.seen).add(e, true)
	return e
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.body.Close()
	w.cancel(nil)
	return err
}

// mayAsk refuses mirrors that were down a moment ago, and secrets in the clear: plain HTTP is for this machine, and for
// registries that hosts.toml says it of.
func (t *transport) mayAsk(r *http.Request) *Error {
	s, host := t.session, r.URL.Host
	if !s.isOrigin(host) && s.client.isDown(host) {
		return &Error{host: host, text: "was down a moment ago", class: ErrUnavailable}
	}
	if r.Body != nil && r.Body != http.NoBody && asked(r).URL.Host != host { // it holds a password
		return &Error{host: host, text: "credentials are not sent to where a token server redirects", class: ErrUnauthorized}
	}
	if s.whole.Load() && forPart(r) {
		return &Error{host: host, text: "no parts are asked for any more", class: ErrNoRange}
	}
	if r.URL.Scheme == "https" || t.plain || docker.IsLocalhost(host) {
		return nil
	}
	// A blob may come in the clear from where the registry points to: its digest is checked.
	if r.Response != nil && r.Body == nil && r.Header.Get("Authorization") == "" && bound(r) != MaxDocument {
		return nil
	}
	return &Error{host: host, text: "plain HTTP is refused, say http:// in hosts.toml to allow it", class: ErrUnavailable}
}

// downs remembers mirrors that could not be reached.
type downs struct {
	mu    sync.Mutex
	hosts map[string]time.Time
}

// downTime is how long a mirror that could not be reached is passed over.
const downTime = time.Minute

func (c *Client) markDown(host string) {
	c.downs.mu.Lock()
	defer c.downs.mu.Unlock()
	if c.downs.hosts == nil {
		c.downs.hosts = map[string]time.Time{}
	}
	for h, at := range c.downs.hosts {
		if time.Since(at) > downTime {
			delete(c.downs.hosts, h)
		}
	}
	if _, known := c.downs.hosts[host]; !known {
		c.log.Warn("mirror is down; it is passed over for a while", "host", host, "while", downTime)
	}
	c.downs.hosts[host] = time.Now()
}

func (c *Client) isDown(host string) bool {
	c.downs.mu.Lock()
	defer c.downs.mu.Unlock()
	at, ok := c.downs.hosts[host]
	return ok && time.Since(at) < downTime
}
