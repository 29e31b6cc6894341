// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

const testPart = 64 << 10

// blobServer serves one blob; before, if set, is asked first and may answer itself.
type blobServer struct {
	data   []byte
	desc   ocispec.Descriptor
	client *Client
	name   reference.Named
	sent   atomic.Int64
	mu     sync.Mutex
	ranges []string
	before func(w http.ResponseWriter, r *http.Request) bool
	server *httptest.Server
}

// total is how many bytes were sent. It ends the server, which waits until its handlers have counted theirs.
func (b *blobServer) total() int64 {
	b.server.Close()
	return b.sent.Load()
}

// counted counts the bytes of bodies.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func newBlobServer(t *testing.T, size int, before func(w http.ResponseWriter, r *http.Request) bool) *blobServer {
	t.Helper()
	b := &blobServer{data: make([]byte, size), before: before}
	rand.Read(b.data)
	b.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b.data), Size: int64(size)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.ranges = append(b.ranges, r.Header.Get("Range"))
		b.mu.Unlock()
		if w = (counted{w, &b.sent}); b.before != nil && b.before(w, r) {
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b.data))
	}))
	b.server = srv
	t.Cleanup(srv.Close)
	var err error
	if b.name, err = reference.ParseDockerRef(strings.TrimPrefix(srv.URL, "http://") + "/x:1"); err != nil {
		t.Fatal(err)
	}
	b.client = New(Config{StallTimeout: time.Minute, UserAgent: "test", PartSize: testPart}, slog.New(slog.DiscardHandler))
	return b
}

func (b *blobServer) session(t *testing.T) *Session {
	t.Helper()
	s, err := b.client.Session(t.Context(), Request{Name: b.name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// read fetches the rest of the blob from an offset.
func (b *blobServer) read(t *testing.T, ctx context.Context, from int64, free int64) ([]byte, error) {
	t.Helper()
	r, err := b.session(t).FetchParts(ctx, b.desc, 4, semaphore.NewWeighted(free))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if !b.client.buffers.TryAcquire(maxBuffers) {
			t.Error("buffers are not given back")
		}
		b.client.buffers.Release(maxBuffers)
	}()
	if _, err := r.Seek(from, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return io.ReadAll(r)
}

func TestALargeBlobComesOverSeveralConnections(t *testing.T) {
	var open atomic.Int64
	three := make(chan struct{})
	b := newBlobServer(t, 10*testPart+777, func(http.ResponseWriter, *http.Request) bool {
		if open.Add(1) == 3 {
			close(three)
		}
		select {
		case <-three: // each of the first three is answered when all have come
		case <-time.After(time.Minute):
		}
		return false
	})
	got, err := b.read(t, t.Context(), 0, 2)
	if err != nil || !bytes.Equal(got, b.data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	select {
	case <-three:
	default:
		t.Error("fewer than three at a time")
	}
	if n := b.total(); n != int64(len(b.data)) {
		t.Errorf("%d bytes came for %d", n, len(b.data))
	}
	for _, r := range b.ranges {
		if !strings.HasPrefix(r, "bytes=") || strings.HasSuffix(r, "-") {
			t.Errorf("asked for %q", r)
		}
	}
}

func TestPartsBeginWhereAnEarlierDownloadStopped(t *testing.T) {
	b := newBlobServer(t, 10*testPart, nil)
	from := 5*testPart + 3
	got, err := b.read(t, t.Context(), int64(from), 0)
	if err != nil || !bytes.Equal(got, b.data[from:]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := b.total(); n != int64(len(b.data)-from) {
		t.Errorf("%d bytes came for %d", n, len(b.data)-from)
	}
}

func TestABrokenPartIsFetchedFromWhereItBroke(t *testing.T) {
	b := newBlobServer(t, 8*testPart, nil)
	b.before = func(w http.ResponseWriter, r *http.Request) bool {
		from, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
		if n, err := strconv.Atoi(from); err != nil || n%testPart != 0 {
			return false // a part that broke already
		}
		http.ServeContent(&cutting{ResponseWriter: w, left: 10_000}, r, "", time.Time{}, bytes.NewReader(b.data))
		panic(http.ErrAbortHandler)
	}
	got, err := b.read(t, t.Context(), 0, 3)
	if err != nil || !bytes.Equal(got, b.data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := b.total(); n > int64(len(b.data)+testPart) {
		t.Errorf("%d bytes came for %d", n, len(b.data))
	}
}

// cutting breaks off after a number of bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; err == nil && n < len(p) {
		http.NewResponseController(c.ResponseWriter).Flush()
		err = io.ErrShortWrite
	}
	return n, err
}

func TestARegistryThatSendsNoParts(t *testing.T) {
	for kind, code := range map[string]int{"sends all": http.StatusOK, "refuses": http.StatusRequestedRangeNotSatisfiable} {
		t.Run(kind, func(t *testing.T) {
			b := newBlobServer(t, 8*testPart, nil)
			b.before = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Range") == "" {
					return false
				}
				if w.WriteHeader(code); code == http.StatusOK {
					w.Write(b.data)
				}
				return true
			}
			got, err := b.read(t, t.Context(), 0, 3)
			if err != nil || !bytes.Equal(got, b.data) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestPartsEndWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("over")
	b := newBlobServer(t, 8*testPart, func(_ http.ResponseWriter, r *http.Request) bool {
		cancel(over)
		<-r.Context().Done()
		return true
	})
	if _, err := b.read(t, ctx, 0, 3); !errors.Is(err, over) {
		t.Errorf("got %v", err)
	}
}

func TestARegistrysShareIsItsOwn(t *testing.T) {
	b := newBlobServer(t, 1, nil)
	b.client.cfg.MaxPerRegistry = 2
	one, two := b.session(t), b.session(t)
	if one.Acquire(t.Context()) != nil || two.Acquire(t.Context()) != nil {
		t.Fatal("the share is not there")
	}
	node := semaphore.NewWeighted(10)
	if one.Share(node).TryAcquire(1) {
		t.Error("more than the registry's share is given")
	}
	if !node.TryAcquire(10) {
		t.Error("a slot of the node is lost")
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if one.Acquire(short) == nil {
		t.Error("more than the registry's share is given")
	}
	two.Release()
	node.Release(10)
	if share := one.Share(node); !share.TryAcquire(1) {
		t.Error("what is free is not given")
	} else {
		share.Release(1)
	}
	one.Release()
	one.Close()
	two.Close()
	if n := len(b.client.limits.all); n != 0 {
		t.Errorf("%d registries are remembered", n)
	}
}
