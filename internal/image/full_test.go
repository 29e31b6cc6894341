// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// loopDisk is a file system of its own, as a disk has it, of that many megabytes.
func loopDisk(t *testing.T, megabytes int64) string {
	t.Helper()
	file, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, megabytes<<20); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mke2fs", "-q", "-t", "ext4", "-m", "0", "-b", "4096", "-O", "^has_journal", file}, {"mount", "-o", "loop", file, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", argv[0], err, out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// ballast takes all that is left of a disk, once, until it is dropped.
type ballast struct {
	dir string

	mu    sync.Mutex
	taken bool
}

func (b *ballast) take() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken {
		return
	}
	b.taken = true
	for i, n := 0, int64(1<<30); n >= 4096; i++ {
		f, err := os.Create(filepath.Join(b.dir, fmt.Sprintf("ballast%d", i)))
		if err != nil {
			return // no room for the file itself
		}
		for ; n >= 4096; n /= 2 {
			if syscall.Fallocate(int(f.Fd()), 0, 0, n) == nil {
				break
			}
		}
		f.Close()
	}
}

func (b *ballast) drop(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	all, err := filepath.Glob(filepath.Join(b.dir, "ballast*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// phases are the moments of a pull of an image with two layers: what the registry is asked for, how much of it is sent by then, and how long
// after that.
type phase struct {
	name, asked string
	bytes       int
	later       time.Duration
}

func phases(t *testing.T, im v1.Image) []phase {
	t.Helper()
	config, err := im.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if !fullSize { // the others: make test-registry
		return []phase{{"before it", "", 0, 0}, {"layer 0 is half here", layerPath(t, im, 0), 1 << 20, 0}, {"layer 1 is here", layerPath(t, im, 1), 1 << 40, 0},
			{"6 ms after the layers", layerPath(t, im, 1), 1 << 40, 6 * time.Millisecond}}
	}
	all := []phase{{"before it", "", 0, 0}, {"the manifest", "/manifests/", 0, 0}, {"the configuration", config.String(), 0, 0}}
	for i := range 2 {
		path := layerPath(t, im, i)
		all = append(all, phase{fmt.Sprintf("layer %d begins", i), path, 0, 0}, phase{fmt.Sprintf("layer %d is half here", i), path, 1 << 20, 0},
			phase{fmt.Sprintf("layer %d is here", i), path, 1 << 40, 0})
	}
	for _, later := range []int{1, 3, 6, 10, 15, 25, 40, 80} {
		all = append(all, phase{fmt.Sprintf("%d ms after the layers", later), layerPath(t, im, 1), 1 << 40, time.Duration(later) * time.Millisecond})
	}
	return all
}

// at calls f in a phase of the next pull.
func (s *registryServer) at(t *testing.T, p phase, f func()) {
	t.Helper()
	var once sync.Once
	s.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, p.asked) {
			return false
		}
		whole := s.blob(t, r.URL.Path)
		if strings.Contains(r.URL.Path, "/manifests/") {
			once.Do(f)
			return false
		}
		send(&pausing{ResponseWriter: w, after: min(p.bytes, len(whole)), pause: func() {
			once.Do(func() {
				if p.later == 0 {
					f()
				} else {
					time.AfterFunc(p.later, f)
				}
			})
		}}, r, whole)
		return true
	})
}

// pausing is an answer that calls a function once so many bytes of it are on their way.
type pausing struct {
	http.ResponseWriter
	after int
	pause func()
}

func (p *pausing) Write(b []byte) (int, error) {
	done := 0
	if p.pause != nil && len(b) >= p.after {
		n, err := p.ResponseWriter.Write(b[:p.after])
		if err != nil {
			return n, err
		}
		p.ResponseWriter.(http.Flusher).Flush()
		p.pause()
		p.pause, b, done = nil, b[n:], n
	}
	n, err := p.ResponseWriter.Write(b)
	p.after -= n
	return done + n, err
}

// TestADiskThatFillsUpInAPull fills the disk in each phase of a pull: it succeeds or says that there is no space, and gives back what it had taken,
// once there is room at the latest; what was there before is unharmed, and a later pull succeeds.
func TestADiskThatFillsUpInAPull(t *testing.T) {
	reg := newRegistry(t)
	im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"a": incompressible(3 << 20)}), layerOf(t, map[string]string{"b": incompressible(2 << 20), "c": strings.Repeat("x", 1<<20)}))
	kept := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"k": incompressible(300_000)}))
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			disk := loopDisk(t, 64)
			config := func(c *Config) { c.Snapshotter, c.SkipSync, c.StallTimeout = snapshotter, false, 30*time.Second }
			s := openWith(t, disk, config)
			keptRef, ref := reg.push(t, "kept:1", kept), reg.push(t, "full:1", im)
			keptIm := mustPull(t, s, keptRef)
			if err := s.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := freeOn(t, disk)
			for _, p := range phases(t, im) {
				t.Run(p.name, func(t *testing.T) {
					fill := &ballast{dir: disk}
					if p.asked == "" {
						fill.take()
					} else {
						reg.at(t, p, fill.take)
					}
					got, err := s.Pull(t.Context(), PullRequest{Ref: ref})
					fill.take() // at once if it has not come to it
					reg.misbehave(nil)
					if err != nil {
						if !errors.Is(err, ErrNoSpace) {
							t.Errorf("got %v", err)
						}
						if all := s.List(); len(all) != 1 || all[0].ID != keptIm.ID {
							t.Errorf("images are %v", all)
						}
					}
					fill.drop(t)
					if readInRootfs(t, s, keptIm, "k") != incompressible(300_000) {
						t.Error("the image that was there is harmed")
					}
					if err == nil {
						if err := s.Remove(t.Context(), got.ID); err != nil {
							t.Error(err)
						}
					}
					eventually(t, "the space is given back", func() bool { return freeOn(t, disk) > before-1<<20 })
					again := mustPull(t, s, ref)
					if readInRootfs(t, s, again, "a") != incompressible(3<<20) {
						t.Error("content is wrong")
					}
					if err := errors.Join(s.Remove(t.Context(), again.ID), s.GC(t.Context())); err != nil {
						t.Error(err)
					}
				})
			}
			eventually(t, "all space is given back", func() bool { return freeOn(t, disk) > before-1<<20 })
			if result, found := check(t, s, false); result.Damaged != 0 {
				t.Errorf("damage: %v", found)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openWith(t, disk, config)
			assertOnly(t, s, disk, keptIm)
		})
	}
}
