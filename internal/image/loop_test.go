// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestAKillWithPartsUnderWayCostsThoseParts kills a pull that has a layer's first part on the disk and the next two half in memory.
func TestAKillWithPartsUnderWayCostsThoseParts(t *testing.T) {
	dir, reg := t.TempDir(), newRegistry(t)
	const size = 26 << 20
	pushed := imageOf(t, v1.Config{}, storedLayer(t, map[string]string{"f": incompressible(size)}))
	ref, path := reg.push(t, "parts:1", pushed), layerPath(t, pushed, 0)
	whole := reg.blob(t, "/v2/parts"+path)
	ready := make(chan struct{})
	var once sync.Once
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, path) {
			return false
		}
		if from(r) == 0 {
			send(w, r, whole)
			return true
		}
		send(&cutting{ResponseWriter: w, left: chunk / 2}, r, whole)
		w.(http.Flusher).Flush()
		for r.Context().Err() == nil {
			all, err := filepath.Glob(filepath.Join(dir, "image/content/ingest/*/data"))
			if err != nil {
				t.Error(err)
			}
			for _, file := range all {
				if info, err := os.Stat(file); err == nil && info.Size() >= chunk {
					once.Do(func() { close(ready) })
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		return true
	})
	killInPull(t, dir, ref, ready)
	var sent, early atomic.Int64
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, path) {
			return false
		}
		if from(r) < chunk {
			early.Add(1)
		}
		send(sending{w, &sent}, r, whole)
		return true
	})
	s := openWith(t, dir, func(c *Config) { c.LayerConnections, c.StallTimeout = 3, 30*time.Second })
	if n := len(s.List()); n != 0 {
		t.Errorf("%d half images are visible", n)
	}
	im := mustPull(t, s, ref)
	if early.Load() > 0 || sent.Load() > int64(len(whole))-chunk {
		t.Errorf("%d bytes of %d were sent again, %d requests were for what is on the disk", sent.Load(), len(whole), early.Load())
	}
	if readInRootfs(t, s, im, "f") != incompressible(size) {
		t.Error("content is wrong")
	}
	assertOnly(t, s, dir, im)
}

// TestOneImageIsPulledRemovedAndUsedAtOnce does all three in a loop: whoever gets a root file system gets a whole one, and nothing is left.
func TestOneImageIsPulledRemovedAndUsedAtOnce(t *testing.T) {
	rounds := 6
	if fullSize {
		rounds = 200
	}
	a, b := incompressible(1<<20+1), incompressible(200_000)
	for name, change := range forms {
		t.Run(name, func(t *testing.T) {
			dir, reg := t.TempDir(), newRegistry(t)
			s := openWith(t, dir, change)
			ref := reg.push(t, "loop:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"a": a}), layerOf(t, map[string]string{"b": b})))
			var used atomic.Int64
			var all sync.WaitGroup
			each := func(do func(i int) error) {
				all.Go(func() {
					for i := range rounds {
						if err := do(i); err != nil && !errors.Is(err, ErrNotFound) {
							t.Error(err)
						}
					}
				})
			}
			each(func(int) error { _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); return err })
			each(func(i int) error {
				if i%2 == 0 {
					return s.GC(t.Context())
				}
				return s.Remove(t.Context(), ref)
			})
			for worker := range 2 {
				each(func(i int) error {
					im, err := s.Pull(t.Context(), PullRequest{Ref: ref})
					if err != nil {
						return err
					}
					return use(t, s, im, fmt.Sprintf("loop-%d-%d", worker, i), map[string]string{"a": a, "b": b}, &used)
				})
			}
			all.Wait()
			if used.Load() == 0 {
				t.Error("nobody got a root file system")
			}
			im := mustPull(t, s, ref)
			assertOnly(t, s, dir, im)
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(mounts), dir) {
				t.Errorf("mounts are left:\n%s", mounts)
			}
		})
	}
}

// use reads a container's root file system, as readInRootfs does, of an image that may be removed meanwhile.
func use(t *testing.T, s *Store, im Image, id string, want map[string]string, used *atomic.Int64) error {
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: im.ID})
	if err != nil {
		return err
	}
	target := t.TempDir()
	if err := r.Root.On(target); err != nil {
		return errors.Join(err, s.RemoveRootfs(t.Context(), id))
	}
	for name, content := range want {
		if got, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(got) != content {
			t.Errorf("%s of %s: %d bytes, %v", name, id, len(got), err)
		}
	}
	used.Add(1)
	return errors.Join(syscall.Unmount(target, syscall.MNT_DETACH), s.RemoveRootfs(t.Context(), id))
}

// TestUnpackingHasItsOwnTimeLimit has one that is over before it begins: the network's is not touched by it, and nothing is left half unpacked.
func TestUnpackingHasItsOwnTimeLimit(t *testing.T) {
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			dir, reg := t.TempDir(), newRegistry(t)
			ref := reg.push(t, "limit:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(100_000)})))
			s := openWith(t, dir, func(c *Config) {
				c.Snapshotter, c.StallTimeout, c.UnpackTimeout = snapshotter, 30*time.Second, time.Nanosecond
			})
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "unpack layer sha256:") || !strings.Contains(fmt.Sprint(err), "not done in 1ns") {
				t.Errorf("got %v", err)
			}
			s.walkSnapshots(t, func(name string) {
				if strings.HasPrefix(name, extractPrefix) {
					t.Errorf("half-unpacked layer %s is left", name)
				}
			})
			s.cfg.UnpackTimeout = time.Hour
			reg.blobs.Store(0)
			im := mustPull(t, s, ref)
			if n := reg.blobs.Load(); n != 0 {
				t.Errorf("%d blobs were fetched again", n)
			}
			assertOnly(t, s, dir, im)
		})
	}
}
