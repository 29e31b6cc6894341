// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/berth-run/berth/internal/image/registry"
)

// fullSize is `make test-registry`: layers so large that they come in parts, registries as slow as the worst, bombs that would fill a disk.
var fullSize = os.Getenv("BERTH_TEST_REGISTRY") == "full"

const (
	// chunk is the most that is fetched again after a connection broke.
	chunk = 8 << 20
	// inTime is what a pull from a registry that misbehaves ends in: errors are tried again, with pauses.
	inTime = 4 * time.Minute
)

// misdeed is what a registry does instead of answering. All of its functions get the number of the request, from 1 on.
type misdeed struct {
	manifest func(w http.ResponseWriter, r *http.Request, n int64) bool
	// layer gets what it should send.
	layer func(w http.ResponseWriter, r *http.Request, n int64, whole []byte) bool
	// want is the class of the error; nil: the pull succeeds all the same, and no more than again bytes are sent twice.
	want  error
	again int64
	// stalls: it sends nothing, which is found out soon. slow: of the full size only.
	stalls, slow bool
}

// send answers as an honest registry does.
func send(w http.ResponseWriter, r *http.Request, whole []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(whole))
}

// from is where the part of a blob that is asked for begins.
func from(r *http.Request) int {
	begin, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	n, _ := strconv.Atoi(begin) // 0 for all of it
	return n
}

// cut sends an honest answer up to n bytes and breaks the connection, with a reset if it says so.
func cut(w http.ResponseWriter, r *http.Request, whole []byte, n int, reset bool) bool {
	send(&cutting{ResponseWriter: w, left: n}, r, whole)
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	time.Sleep(20 * time.Millisecond) // what was written arrives before the reset
	if tcp, ok := conn.(*net.TCPConn); ok && reset {
		tcp.SetLinger(0)
	}
	conn.Close()
	return true
}

// cutting is an answer that has room for so many bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	n, err := c.ResponseWriter.Write(p[:c.left])
	c.left = 0
	return n, errors.Join(err, io.ErrShortWrite)
}

func answers(code int, headers ...string) func(http.ResponseWriter, *http.Request, int64) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		http.Error(w, "no", code)
		return true
	}
}

// upTo misbehaves in the first n requests.
func upTo(n int64, f func(http.ResponseWriter, *http.Request, int64) bool) func(http.ResponseWriter, *http.Request, int64) bool {
	return func(w http.ResponseWriter, r *http.Request, i int64) bool { return i <= n && f(w, r, i) }
}

func ofLayer(f func(http.ResponseWriter, *http.Request, int64) bool) func(http.ResponseWriter, *http.Request, int64, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, n int64, _ []byte) bool { return f(w, r, n) }
}

// once misbehaves in the first request for the layer.
func once(f func(w http.ResponseWriter, r *http.Request, whole []byte) bool) func(http.ResponseWriter, *http.Request, int64, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, n int64, whole []byte) bool {
		return n == 1 && f(w, r, whole)
	}
}

func always(f func(w http.ResponseWriter, r *http.Request, whole []byte) bool) func(http.ResponseWriter, *http.Request, int64, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, _ int64, whole []byte) bool { return f(w, r, whole) }
}

func stall(w http.ResponseWriter, r *http.Request, _ []byte) bool {
	w.(http.Flusher).Flush()
	<-r.Context().Done()
	return true
}

func changed(whole []byte) []byte {
	whole = bytes.Clone(whole)
	whole[len(whole)/2] ^= 1
	return whole
}

func misdeeds(t *testing.T) map[string]misdeed {
	t.Helper()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials went to another host")
		}
		http.Error(w, "not here either", http.StatusBadGateway)
	}))
	t.Cleanup(elsewhere.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	redirect := func(to string) func(http.ResponseWriter, *http.Request, int64) bool {
		return func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			http.Redirect(w, r, to, http.StatusTemporaryRedirect)
			return true
		}
	}
	self := func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	return map[string]misdeed{
		"401":                 {manifest: answers(401), want: ErrUnauthorized},
		"403":                 {manifest: answers(403), want: ErrUnauthorized},
		"404":                 {manifest: answers(404), want: ErrNotFound},
		"429 for ever":        {manifest: answers(429, "Retry-After", "0"), want: ErrUnavailable},
		"429 for hours":       {manifest: answers(429, "Retry-After", "86400"), want: ErrUnavailable, slow: true},
		"429 then fine":       {manifest: upTo(2, answers(429, "Retry-After", "0"))},
		"500 for ever":        {manifest: answers(500), want: ErrUnavailable},
		"503 for ever":        {manifest: answers(503), want: ErrUnavailable},
		"503 then fine":       {manifest: upTo(2, answers(503))},
		"layer 401":           {layer: ofLayer(answers(401)), want: ErrUnauthorized},
		"layer 403":           {layer: ofLayer(answers(403)), want: ErrUnauthorized},
		"layer 404":           {layer: ofLayer(answers(404)), want: ErrNotFound},
		"layer 429":           {layer: ofLayer(answers(429, "Retry-After", "0")), want: ErrUnavailable},
		"layer 500":           {layer: ofLayer(answers(500)), want: ErrUnavailable},
		"layer 503 then fine": {layer: ofLayer(upTo(2, answers(503))), again: 64}, // what it says with them

		"manifest stalls before its header": {manifest: func(_ http.ResponseWriter, r *http.Request, _ int64) bool { <-r.Context().Done(); return true }, want: ErrUnavailable, stalls: true},
		"layer stalls before its header":    {layer: always(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool { <-r.Context().Done(); return true }), want: ErrUnavailable, stalls: true},
		"layer stalls":                      {layer: always(stall), want: ErrUnavailable, stalls: true},
		"layer stalls once": {layer: once(func(w http.ResponseWriter, r *http.Request, whole []byte) bool {
			send(&cutting{ResponseWriter: w, left: 300_000}, r, whole)
			return stall(w, r, whole)
		}), again: 1 << 20, stalls: true},

		"reset in the middle": {layer: once(func(w http.ResponseWriter, r *http.Request, whole []byte) bool {
			return cut(w, r, whole, 300_000, true)
		}), again: 1 << 20},
		"reset again and again": {layer: always(func(w http.ResponseWriter, r *http.Request, whole []byte) bool {
			return cut(w, r, whole, 200_000, true)
		}), again: chunk},
		"reset before the first": {layer: always(func(w http.ResponseWriter, r *http.Request, whole []byte) bool { return cut(w, r, whole, 0, true) }), want: ErrUnavailable},
		"connection ends too early": {layer: once(func(w http.ResponseWriter, r *http.Request, whole []byte) bool {
			return cut(w, r, whole, 300_000, false)
		})},
		"truncated in good order": {layer: once(func(w http.ResponseWriter, r *http.Request, whole []byte) bool {
			send(w, r, whole[:300_000])
			return true
		})},
		"always truncated": {layer: always(func(w http.ResponseWriter, _ *http.Request, whole []byte) bool { w.Write(whole[:300_000]); return true }), want: ErrUnavailable},
		"wrong digest": {layer: always(func(w http.ResponseWriter, r *http.Request, whole []byte) bool {
			send(w, r, changed(whole))
			return true
		}), want: ErrCorrupt},
		"wrong digest then fine": {layer: once(func(w http.ResponseWriter, r *http.Request, whole []byte) bool {
			send(w, r, changed(whole))
			return true
		}), again: 1 << 40},
		"more bytes than promised": {layer: always(func(w http.ResponseWriter, _ *http.Request, whole []byte) bool {
			w.Write(whole)
			w.Write(whole)
			return true
		}), want: ErrCorrupt},
		"length that is too large": {layer: once(longer), again: chunk},
		"another part":             {layer: once(func(w http.ResponseWriter, r *http.Request, whole []byte) bool { return anotherPart(w, r, whole) }), again: 1 << 40},
		"content encoding zstd":    {layer: always(func(w http.ResponseWriter, _ *http.Request, whole []byte) bool { return encoded(t, w, "zstd", whole) }), want: ErrUnavailable},
		"content encoding of a bomb": {layer: always(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			return encoded(t, w, "gzip", make([]byte, 64<<20))
		}), want: ErrCorrupt},

		"redirect to one that fails":   {layer: ofLayer(redirect(elsewhere.URL)), want: ErrUnavailable},
		"redirect to one that is gone": {layer: ofLayer(redirect(closed.URL)), want: ErrUnavailable},
		"redirect to itself":           {layer: ofLayer(self), want: ErrUnavailable},
		"redirect of the manifest":     {manifest: self, want: ErrUnavailable},
		"redirect to a file":           {layer: ofLayer(redirect("file:///etc/passwd")), want: ErrUnavailable},
	}
}

// longer says that more comes than there is.
func longer(w http.ResponseWriter, r *http.Request, whole []byte) bool {
	w.Header().Set("Content-Length", strconv.Itoa(2*len(whole)))
	w.Write(whole[from(r):])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// anotherPart sends the blob's beginning, whatever was asked for, and says so at no place.
func anotherPart(w http.ResponseWriter, r *http.Request, whole []byte) bool {
	rest := len(whole) - from(r)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from(r), len(whole)-1, len(whole)))
	w.Header().Set("Content-Length", strconv.Itoa(rest))
	w.WriteHeader(http.StatusPartialContent)
	w.Write(changed(whole)[:rest])
	return true
}

func encoded(t *testing.T, w http.ResponseWriter, how string, data []byte) bool {
	w.Header().Set("Content-Encoding", how)
	var z io.WriteCloser = gzip.NewWriter(w)
	if how == "zstd" {
		var err error
		if z, err = zstd.NewWriter(w); err != nil {
			t.Error(err)
		}
	}
	z.Write(data) // what reads it may be gone
	z.Close()
	return true
}

// sending counts the bytes of bodies.
type sending struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (s sending) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p)
	s.n.Add(int64(n))
	return n, err
}

func (s sending) Flush()                      { s.ResponseWriter.(http.Flusher).Flush() }
func (s sending) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// hurry makes the pauses between tries short. A stall is what takes longer than any machine does, but where there is one.
func hurry(s *Store, stalls bool) {
	cfg := registry.Config{StallTimeout: 30 * time.Second, UserAgent: userAgent}
	if stalls {
		cfg.StallTimeout = 300 * time.Millisecond
	}
	if !fullSize {
		s.resumePause, cfg.Pause = 10*time.Millisecond, 10*time.Millisecond
	}
	s.registry = registry.New(cfg, s.log)
}

// TestRegistriesThatMisbehave has a pull of one layer meet each misdeed: it succeeds, with little that is fetched twice, or has an error that
// says by its class what a caller can do, and names the image and no secret. Nothing of it is visible, and the next pull works.
func TestRegistriesThatMisbehave(t *testing.T) {
	size := 1 << 20
	if fullSize {
		size = 40 << 20
	}
	content := incompressible(size)
	for name, c := range misdeeds(t) {
		t.Run(name, func(t *testing.T) {
			if c.slow && !fullSize {
				t.Skip("takes minutes: make test-registry")
			}
			t.Parallel()
			dir, reg := t.TempDir(), newRegistry(t)
			s := openWith(t, dir, func(c *Config) { c.LayerConnections = 3 })
			hurry(s, c.stalls)
			reg.Config.ErrorLog = log.New(io.Discard, "", 0)
			pushed := imageOf(t, v1.Config{User: "1"}, layerOf(t, map[string]string{"f": content}))
			ref, path := reg.push(t, "x:1", pushed), layerPath(t, pushed, 0)
			whole := reg.blob(t, "/v2/x"+path)
			var manifests, layers, bytes atomic.Int64
			reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.Contains(r.URL.Path, "/manifests/"):
					return c.manifest != nil && c.manifest(w, r, manifests.Add(1))
				case !strings.HasSuffix(r.URL.Path, path) || r.Method != http.MethodGet:
					return false
				}
				counted := sending{w, &bytes}
				if c.layer == nil || !c.layer(counted, r, layers.Add(1), whole) {
					send(counted, r, whole)
				}
				return true
			})
			begin := time.Now()
			im, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: &Auth{Username: "u", Password: "hunter2"}})
			if took := time.Since(begin); took > inTime {
				t.Errorf("it took %s", took)
			}
			reg.misbehave(nil)
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if again := bytes.Load() - int64(len(whole)); again > c.again {
					t.Errorf("%d bytes were sent again, want at most %d", again, c.again)
				}
				assertOnly(t, s, dir, im)
				return
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if text := err.Error(); !strings.Contains(text, ref) || strings.Contains(text, "hunter2") || len(text) > 4096 {
				t.Errorf("error %q: must name the image and no secret", text)
			}
			if len(s.List()) != 0 {
				t.Error("a half image is visible")
			}
			if im := mustPull(t, s, ref); readInRootfs(t, s, im, "f") != content {
				t.Error("content is wrong")
			}
		})
	}
}

// TestSizesThatAreNotTrue has manifests that are wrong about their layer. What they have left does not stand in the way of one that is right.
func TestSizesThatAreNotTrue(t *testing.T) {
	for name, c := range map[string]struct {
		content, by int
		want        error
	}{
		"too small": {100_000, -1, ErrCorrupt}, "too large": {100_000, 1, ErrUnavailable}, "none": {100_000, -1 << 40, ErrCorrupt},
		"terabytes": {100_000, 1 << 42, ErrNoSpace}, "too large and unpacked as it comes": {2 << 20, 1, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			hurry(s, false)
			honest := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(c.content)}))
			m, err := honest.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			ref := reg.push(t, "x:1", honest)
			reg.liesOfSizes(t, honest, m.Layers[0].Size+int64(c.by))
			if _, err = s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
			if len(s.List()) != 0 {
				t.Error("a half image is visible")
			}
			reg.misbehave(nil)
			mustPull(t, s, ref)
		})
	}
}

// liesOfSizes has the registry send the image's manifest with other sizes of its layers.
func (s *registryServer) liesOfSizes(t *testing.T, im v1.Image, sizes ...int64) {
	t.Helper()
	m, err := im.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	m = m.DeepCopy()
	for i := range m.Layers {
		m.Layers[i].Size = sizes[i]
	}
	lie, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	s.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", string(types.DockerManifestSchema2))
		w.Write(lie)
		return true
	})
}

// TestSizesThatNoImageHas are refused before anything is added up, also where the layers are here already.
func TestSizesThatNoImageHas(t *testing.T) {
	for name, sizes := range map[string][]int64{"negative": {-5, 100}, "wrapped to nothing": {math.MaxInt64, math.MaxInt64}, "one of exabytes": {1 << 60, 100}} {
		t.Run(name, func(t *testing.T) {
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"a": "x"}), layerOf(t, map[string]string{"b": "y"}))
			ref := reg.push(t, "x:1", im)
			for _, here := range []bool{false, true} {
				if here {
					reg.misbehave(nil)
					mustPull(t, s, ref)
				}
				reg.liesOfSizes(t, im, sizes...)
				got, err := s.Pull(t.Context(), PullRequest{Ref: ref})
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("here %t: an image of %d bytes, %v", here, got.Size, err)
				}
			}
		})
	}
}

// TestASlowRegistryIsNotAStalledOne has one that sends a kilobyte a second.
func TestASlowRegistryIsNotAStalledOne(t *testing.T) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), func(c *Config) { c.StallTimeout = 30 * time.Second })
	second, size := 20*time.Millisecond, 16<<10
	if fullSize {
		second, size = time.Second, 60<<10
	}
	pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(size)}))
	ref, path := reg.push(t, "x:1", pushed), layerPath(t, pushed, 0)
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, path) || r.Method != http.MethodGet {
			return false
		}
		whole := reg.blob(t, r.URL.Path)
		w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
		for len(whole) > 0 {
			n := min(1<<10, len(whole))
			if _, err := w.Write(whole[:n]); err != nil {
				return true
			}
			w.(http.Flusher).Flush()
			whole = whole[n:]
			time.Sleep(second)
		}
		return true
	})
	if got := readInRootfs(t, s, mustPull(t, s, ref), "f"); got != incompressible(size) {
		t.Error("content is wrong")
	}
}
