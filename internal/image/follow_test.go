// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// passage is an image of one layer, half of which can be compressed, with a registry that sends a part of it, and goes on when it is told to.
type passage struct {
	*registryServer
	ref, path string
	whole     []byte
	content   string
	half      int
}

func newPassage(t *testing.T) *passage {
	t.Helper()
	var content strings.Builder
	for i := range 16 {
		content.WriteString(incompressible(200_000+i) + strings.Repeat("x", 300_000))
	}
	p := &passage{registryServer: newRegistry(t), content: content.String()}
	im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": p.content}))
	p.ref, p.path = p.push(t, "passage:1", im), layerPath(t, im, 0)
	p.whole = p.blob(t, "/v2/passage"+p.path)
	p.half = len(p.whole) / 2
	return p
}

// pauses has requests for the layer answered by that, once its first half is sent and flushed.
func (p *passage) pauses(then func(w http.ResponseWriter, r *http.Request)) {
	p.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, p.path) {
			return false
		}
		send(&pausing{ResponseWriter: w, after: p.half, pause: func() { then(w, r) }}, r, p.whole)
		return true
	})
}

// sizeOf adds up the files of a store that match.
func sizeOf(dir string, patterns ...string) (n int64) {
	for _, pattern := range patterns {
		all, _ := filepath.Glob(filepath.Join(dir, "image", pattern))
		for _, file := range all {
			if info, err := os.Stat(file); err == nil {
				n += info.Size()
			}
		}
	}
	return n
}

// followed waits until half of the layer is here, which is all that was sent, and more than a quarter of it unpacked.
func (p *passage) followed(t *testing.T, dir string) bool {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		here := sizeOf(dir, contentDir+"/ingest/*/data")
		unpacked := sizeOf(dir, overlayfs+"/snapshots/*/"+blobName, overlayfs+"/snapshots/*/fs/f")
		if here >= int64(p.half) && unpacked > int64(len(p.content))/4 {
			return true
		}
	}
	t.Error("the layer is not unpacked while it comes")
	return false
}

// givenUp begins a pull whose caller leaves after first, in the middle of the layer.
func (p *passage) givenUp(t *testing.T, s *Store, first func()) {
	t.Helper()
	s.abandonAfter = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.pauses(func(_ http.ResponseWriter, r *http.Request) {
		first()
		cancel()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
	if _, err := s.Pull(ctx, PullRequest{Ref: p.ref}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.flights.wg.Wait()
}

func (p *passage) assertNothingHalf(t *testing.T, s *Store) {
	t.Helper()
	if n := len(s.List()); n > 0 {
		t.Errorf("%d half images are visible", n)
	}
	s.walkSnapshots(t, func(name string) { t.Errorf("snapshot %s is left", name) })
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	for key := range s.locks.locks {
		if strings.HasPrefix(key, blobPrefix) || strings.HasPrefix(key, chainPrefix) {
			t.Errorf("%s is locked", key)
		}
	}
	if !s.followers.TryAcquire(maxUnpacks) {
		t.Error("a follower's place is not given back")
	} else {
		s.followers.Release(maxUnpacks)
	}
}

// again pulls without misdeeds, and tells how many bytes of the layer were sent.
func (p *passage) again(t *testing.T, s *Store, dir string) int64 {
	t.Helper()
	var sent atomic.Int64
	p.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, p.path) {
			return false
		}
		send(sending{w, &sent}, r, p.whole)
		return true
	})
	im := mustPull(t, s, p.ref)
	if readInRootfs(t, s, im, "f") != p.content {
		t.Error("content is wrong")
	}
	assertOnly(t, s, dir, im)
	return sent.Load()
}

func TestALayerIsUnpackedWhileItComes(t *testing.T) {
	p := newPassage(t)
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			dir := t.TempDir()
			s := openWith(t, dir, form(snapshotter))
			seen := false
			p.pauses(func(http.ResponseWriter, *http.Request) {
				seen = p.followed(t, dir)
				if len(s.List()) > 0 {
					t.Error("half an image is visible")
				}
			})
			im := mustPull(t, s, p.ref)
			if readInRootfs(t, s, im, "f") != p.content || !seen {
				t.Error("content is wrong")
			}
			assertOnly(t, s, dir, im)
		})
	}
}

func TestALayerThatIsUnpackedAndTurnsOutWrong(t *testing.T) {
	p := newPassage(t)
	good := p.whole
	bad := append([]byte{}, good...)
	bad[len(bad)-1000] ^= 1 // stored as it is: only digests and sums tell
	for name, wrongs := range map[string]int64{"once": 1, "always": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			hurry(s, false)
			var asked atomic.Int64
			p.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, p.path) {
					return false
				}
				whole := good
				if n := asked.Add(1); n <= wrongs {
					whole = bad
				}
				send(&pausing{ResponseWriter: w, after: p.half, pause: func() {
					if asked.Load() == 1 {
						p.followed(t, dir)
					}
				}}, r, whole)
				return true
			})
			_, err := s.Pull(t.Context(), PullRequest{Ref: p.ref})
			if asked.Load() != 2 {
				t.Errorf("it was fetched %d times, want 2", asked.Load())
			}
			if name == "once" {
				if err != nil {
					t.Fatal(err)
				}
			} else {
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "fetch layer sha256:") {
					t.Errorf("got %v", err)
				}
				p.assertNothingHalf(t, s)
			}
			p.again(t, s, dir)
		})
	}
}

func TestALayerThatIsUnpackedAndBreaksOff(t *testing.T) {
	p := newPassage(t)
	dir := t.TempDir()
	s := openStore(t, dir)
	hurry(s, false)
	var sent, asked atomic.Int64
	p.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, p.path) {
			return false
		}
		w = sending{w, &sent}
		if asked.Add(1) > 1 {
			send(w, r, p.whole)
			return true
		}
		send(&pausing{ResponseWriter: w, after: p.half, pause: func() {
			p.followed(t, dir)
			panic(http.ErrAbortHandler)
		}}, r, p.whole)
		return true
	})
	im := mustPull(t, s, p.ref)
	if got := sent.Load(); got != int64(len(p.whole)) {
		t.Errorf("%d bytes were sent of a layer of %d", got, len(p.whole))
	}
	if readInRootfs(t, s, im, "f") != p.content {
		t.Error("content is wrong")
	}
	assertOnly(t, s, dir, im)
}

func TestAPullThatIsGivenUpWhileItsLayerIsUnpackedGoesOnLater(t *testing.T) {
	p := newPassage(t)
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			dir := t.TempDir()
			s := openWith(t, dir, form(snapshotter))
			p.givenUp(t, s, func() { p.followed(t, dir) })
			p.assertNothingHalf(t, s)
			if sent := p.again(t, s, dir); sent > int64(len(p.whole)-p.half) {
				t.Errorf("%d bytes were sent again of %d, half of which were here", sent, len(p.whole))
			}
		})
	}
}

func TestAKillWhileALayerIsUnpackedAsItComesCostsLittle(t *testing.T) {
	p, dir := newPassage(t), t.TempDir()
	ready := make(chan struct{})
	var once sync.Once
	p.pauses(func(_ http.ResponseWriter, r *http.Request) {
		p.followed(t, dir)
		once.Do(func() { close(ready) })
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
	killInPull(t, dir, p.ref, ready)
	s := openStore(t, dir)
	p.assertNothingHalf(t, s)
	if sent := p.again(t, s, dir); sent > int64(len(p.whole)-p.half) {
		t.Errorf("%d bytes were sent again of %d, half of which were here", sent, len(p.whole))
	}
}

// TestAnEarlierLifesHolesAreNotTakenForTheLayer has a download that is whole but for what was given back, as a kill leaves it.
func TestAnEarlierLifesHolesAreNotTakenForTheLayer(t *testing.T) {
	p, dir := newPassage(t), t.TempDir()
	s := openStore(t, dir)
	p.givenUp(t, s, func() {})
	all, err := filepath.Glob(filepath.Join(dir, "image", contentDir, "ingest", "*", "data"))
	if err != nil || len(all) != 1 {
		t.Fatalf("downloads are %v, %v", all, err)
	}
	if err := os.Truncate(all[0], int64(len(p.whole))); err != nil {
		t.Fatal(err)
	}
	if sent := p.again(t, s, dir); sent != int64(len(p.whole)) {
		t.Errorf("%d bytes were sent of %d", sent, len(p.whole))
	}
}

func TestUnpackingIsNotAheadOfWhatTheDiskMayHold(t *testing.T) {
	const mb = 1 << 20
	s := &Store{cfg: Config{Root: t.TempDir()}}
	for name, c := range map[string]struct {
		size, at, unpacked int64
		want               bool
	}{
		"the beginning":                              {64 * mb, 0, 0, true},
		"what cannot be compressed":                  {64 * mb, 8 * mb, 8 * mb, false},
		"half of it compressed":                      {64 * mb, 16 * mb, 32 * mb, true},
		"half of it compressed, and most of it read": {64 * mb, 48 * mb, 96 * mb, false},
		"a tenth":           {64 * mb, 60 * mb, 600 * mb, true},
		"more than is free": {1 << 50, 0, 0, false},
	} {
		f := &follower{a: &arrival{s: s, desc: ocispec.Descriptor{Size: c.size}}, at: c.at}
		if got := f.mayRead(c.at, c.unpacked); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	f := &follower{a: &arrival{s: s, desc: ocispec.Descriptor{Size: 64 * mb}}, at: 8 * mb}
	if !f.mayRead(8*mb, 80*mb) {
		t.Error("what is compressed to a tenth is not read on")
	}
	if f.at = 24 * mb; f.mayRead(24*mb, 96*mb) {
		t.Error("what was compressed at its beginning alone is read on")
	}
}

func TestATurnThatWaitsTakesNoPlaceAndNoTime(t *testing.T) {
	s := &Store{cfg: Config{UnpackTimeout: time.Hour}, unpacks: semaphore.NewWeighted(1)}
	u := &unpacking{puller: &puller{s: s, progress: &progress{}}}
	turn, err := u.turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.unpacks.TryAcquire(1) {
		t.Fatal("it has no place")
	}
	turn.pause()
	if !s.unpacks.TryAcquire(1) {
		t.Fatal("it keeps its place")
	}
	if turn.timer.Stop() || turn.left <= 0 || turn.left >= time.Hour {
		t.Errorf("its time goes on, %s are left", turn.left)
	}
	s.unpacks.Release(1)
	if err := turn.resume(); err != nil || s.unpacks.TryAcquire(1) {
		t.Errorf("it does not go on: %v", err)
	}
	turn.left = 0
	turn.pause()
	turn.left = 0
	if err := turn.resume(); err == nil && turn.ctx.Err() == nil {
		t.Error("time does not end")
	}
	turn.end()
	if !s.unpacks.TryAcquire(1) {
		t.Error("it keeps its place after its end")
	}
}

func TestWhatIsWholeAndNoLayerIsNotKept(t *testing.T) {
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			dir, reg := t.TempDir(), newRegistry(t)
			s := openWith(t, dir, form(snapshotter))
			ref := reg.push(t, "none:1", imageFrom(t, []byte(incompressible(2<<20)), types.OCIUncompressedLayer, tarOf(t, map[string]string{"f": "x"})))
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "unpack layer sha256:") {
				t.Errorf("got %v", err)
			}
			if n := sizeOf(dir, contentDir+"/ingest/*/data"); n > 0 {
				t.Errorf("%d bytes are kept of it", n)
			}
		})
	}
}
