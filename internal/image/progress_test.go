// SPDX-License-Identifier: Apache-2.0

package image

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// partly waits until some of the layer is on the disk, and returns how much.
func (p *passage) partly(t *testing.T, dir string) int64 {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if n := sizeOf(dir, contentDir+"/ingest/*/data"); n >= int64(p.half)/2 {
			return n
		}
	}
	t.Error("nothing of the layer is on the disk")
	return 0
}

// sends is what honest registries do.
func (p *passage) sends(w http.ResponseWriter, r *http.Request) { send(w, r, p.whole) }

// pullTold pulls, and returns what was told last.
func (p *passage) pullTold(t *testing.T, s *Store) (last Progress) {
	t.Helper()
	if _, err := s.Pull(t.Context(), PullRequest{Ref: p.ref, Progress: func(p Progress) { last = p }}); err != nil {
		t.Fatal(err)
	}
	return last
}

// TestProgressEndsWhereItWasToEnd also has layers that become blobs first.
func TestProgressEndsWhereItWasToEnd(t *testing.T) {
	p := newPassage(t)
	whole := int64(len(p.whole))
	first := func(then func(w http.ResponseWriter, r *http.Request)) {
		var asked atomic.Int64
		p.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, p.path) {
				return false
			}
			if asked.Add(1) > 1 {
				p.sends(w, r)
			} else {
				then(w, r)
			}
			return true
		})
	}
	for name, c := range map[string]struct {
		before      func(t *testing.T, s *Store, dir string)
		least, most int64
	}{
		"at once": {func(*testing.T, *Store, string) { first(p.sends) }, whole, whole},
		"when an earlier pull has brought a part": {func(t *testing.T, s *Store, dir string) {
			p.givenUp(t, s, func() { p.partly(t, dir) })
			first(p.sends)
		}, 1, whole - 1},
		"when the connection breaks": {func(t *testing.T, _ *Store, dir string) {
			first(func(w http.ResponseWriter, r *http.Request) {
				send(&pausing{ResponseWriter: w, after: p.half, pause: func() {
					p.partly(t, dir)
					panic(http.ErrAbortHandler)
				}}, r, p.whole)
			})
		}, whole, whole},
		"when it came wrong": {func(*testing.T, *Store, string) {
			bad := append([]byte{}, p.whole...)
			bad[len(bad)-1000] ^= 1
			first(func(w http.ResponseWriter, r *http.Request) { send(w, r, bad) })
		}, 2 * whole, 2 * whole},
	} {
		for kept, keep := range map[string]bool{"": false, " with blobs": true} {
			t.Run(name+kept, func(t *testing.T) {
				dir := t.TempDir()
				s := openWith(t, dir, func(c *Config) { c.KeepLayers = keep })
				hurry(s, false)
				c.before(t, s, dir)
				got := p.pullTold(t, s)
				const documents = 4 << 10
				if got.Bytes != got.Total || got.Total < c.least || got.Total > c.most+documents {
					t.Errorf("%d bytes of %d, want all of at least %d, with manifest and configuration", got.Bytes, got.Total, c.least)
				}
			})
		}
	}
}
