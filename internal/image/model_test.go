// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-run/berth/internal/linux/mount"
)

const (
	modelEnv     = "BERTH_IMAGE_TEST_MODEL"
	modelWorkers = 3
)

// modelChild is a daemon that does all that a store can, at once and in an order that the seed says, until it is killed.
func modelChild(what string) error {
	words := strings.Fields(what)
	dir, archive, refs := words[0], words[2], words[3:]
	seed, err := strconv.ParseUint(words[1], 10, 64)
	if err != nil {
		return err
	}
	c := childConfig(dir)
	if seed%2 == 0 {
		c.Snapshotter = overlayfs
	}
	s, err := Open(context.Background(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	hurry := time.Millisecond
	s.abandonAfter, s.resumePause = hurry, hurry
	var all sync.WaitGroup
	failed := make(chan error, modelWorkers)
	for worker := range modelWorkers {
		r := rand.New(rand.NewPCG(seed, uint64(worker)))
		all.Go(func() {
			for n := 0; ; n++ {
				if err := modelStep(s, r, fmt.Sprintf("c-%d-%d-%d", seed, worker, n), archive, refs); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	return <-failed
}

// modelStep does one thing. What may go wrong is no error of it: that a registry fails, or that somebody else has removed an image.
func modelStep(s *Store, r *rand.Rand, id, archive string, refs []string) error {
	ctx, ref := context.Background(), refs[r.IntN(len(refs))]
	var err error
	switch r.IntN(12) {
	case 0, 1, 2, 3, 4:
		if r.IntN(3) == 0 { // nobody waits for it, so it ends
			limited, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(20))*time.Millisecond)
			defer cancel()
			ctx = limited
		}
		_, err = s.Pull(ctx, PullRequest{Ref: ref})
		if errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
	case 5:
		err = s.Remove(ctx, ref)
	case 6:
		_, err = s.Prune(ctx, PruneRequest{InUse: func() map[string]bool { return nil }})
	case 7:
		err = s.GC(ctx)
	case 8:
		err = importFile(s, archive)
	case 9, 10:
		var im Image
		if im, err = s.Status(ref); err == nil {
			_, err = s.PrepareRootfs(ctx, RootfsRequest{ID: id, ImageID: im.ID})
		}
		if err != nil { // it was removed meanwhile: as an image, or with its layers
			err = s.RemoveRootfs(ctx, id)
		}
	case 11:
		var ids []string
		if ids, err = s.Rootfses(); err == nil && len(ids) > 0 {
			err = s.RemoveRootfs(ctx, ids[r.IntN(len(ids))])
		}
	}
	if isNotFound(err) {
		return nil
	}
	return err
}

func importFile(s *Store, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := s.Import(context.Background(), f, ""); !errors.Is(err, ErrCorrupt) { // a pull has consumed what both have
		return err
	}
	return nil
}

// model is what the images are, of which some have layers in common: as a beginning, as another's end, as a blob alone.
type model struct {
	refs    []string
	content map[string]map[string]string // image ID → files
	archive string
}

func newModel(t *testing.T, reg *registryServer) model {
	t.Helper()
	m := model{content: map[string]map[string]string{}, archive: filepath.Join(t.TempDir(), "archive.tar")}
	var layers []v1.Layer
	files := map[int]map[string]string{}
	for i, size := range []int{1<<20 + 300_000, 20_000, 1<<20 + 100_000, 5_000} { // large ones are unpacked while they come
		files[i] = map[string]string{fmt.Sprint("l", i): incompressible(size)[i:]}
		layers = append(layers, storedLayer(t, files[i]))
	}
	for n, of := range [][]int{{0, 1}, {0, 2}, {1, 0}, {0, 1, 3}, {3, 2, 1}} {
		content, mine := map[string]string{}, []v1.Layer{}
		for _, i := range of {
			mine = append(mine, layers[i])
			for path, data := range files[i] {
				content[path] = data
			}
		}
		im := imageOf(t, v1.Config{}, mine...)
		id, err := im.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		m.content[id.String()] = content
		m.refs = append(m.refs, reg.push(t, fmt.Sprintf("model%d:1", n), im))
		if n == 3 {
			tag, err := name.NewTag("example.com/imported:1")
			if err == nil {
				err = tarball.WriteToFile(m.archive, tag, im)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return m
}

// flaky breaks one of some answers with a blob in its middle, and refuses others.
func flaky(t *testing.T, reg *registryServer) func(w http.ResponseWriter, r *http.Request) bool {
	var n atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		switch n.Add(1) % 7 {
		case 0:
			http.Error(w, "no", http.StatusNotFound)
			return true
		case 3:
			whole := reg.blob(t, r.URL.Path)
			return cut(w, r, whole, len(whole)/2, false)
		}
		return false
	}
}

// TestWhateverADaemonDidWhenItWasKilled has daemons killed, one after the other on one store, that pull, give up pulls, remove, prune, import, collect
// and make root file systems all at once. What the next one lists is whole, containers that are there have all of their layers, and in the end
// nothing is left.
func TestWhateverADaemonDidWhenItWasKilled(t *testing.T) {
	lives := 4
	if fullSize {
		lives = 300
	}
	dir, reg := t.TempDir(), newRegistry(t)
	m := newModel(t, reg)
	r := rand.New(rand.NewPCG(1, 2))
	containers := 0
	for seed := range lives {
		reg.misbehave(flaky(t, reg))
		killModel(t, fmt.Sprintln(dir, seed, m.archive, strings.Join(m.refs, " ")), time.Duration(100+r.IntN(900))*time.Millisecond)
		reg.misbehave(nil)
		s := openWith(t, dir, func(*Config) {})
		containers += m.check(t, s)
		if seed%3 == 2 {
			im := mustPull(t, s, m.refs[r.IntN(len(m.refs))])
			if im.Layers == 0 || m.content[im.ID] == nil {
				t.Errorf("pulled %+v", im)
			}
			m.check(t, s)
		}
		if seed == lives-1 {
			m.clear(t, s, dir)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("after life %d", seed)
		}
	}
	if containers == 0 && fullSize {
		t.Error("no container outlived its daemon")
	}
}

func killModel(t *testing.T, what string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), modelEnv+"="+what)
	var said strings.Builder
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer over.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("the daemon ended by itself: %v %s", err, said.String())
	}
}

// check looks at all images and containers, and returns how many of these have been mounted.
func (m model) check(t *testing.T, s *Store) (containers int) {
	t.Helper()
	if got, found := check(t, s, false); got.Damaged != 0 {
		t.Errorf("damage: %v", found)
	}
	for _, im := range s.List() {
		if m.content[im.ID] == nil || len(im.RepoTags)+len(im.RepoDigests) == 0 {
			t.Errorf("listed is %+v", im)
		}
	}
	if damaged := s.index.Load().damaged; len(damaged) > 0 {
		t.Errorf("cannot be read: %v", damaged)
	}
	ids, err := s.Rootfses()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		rec, err := s.readRecord(id)
		if err != nil { // it was killed while this was written
			continue
		}
		s.mu.Lock()
		c := s.chains[rec.ChainID]
		s.mu.Unlock()
		if c == nil {
			// Not yet held when the daemon was killed, or not any more: then PrepareRootfs had not returned, or RemoveRootfs was called.
			t.Errorf("container %s has lost the layers of %s", id, rec.ImageID)
			continue
		}
		m.read(t, s, c, rec.ImageID)
		containers++
	}
	return containers
}

func (m model) read(t *testing.T, s *Store, c *chain, id string) {
	t.Helper()
	var r Rootfs
	o, err := s.overlay(t.Context(), c, &r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.Mounts != nil {
		o.Mounts = append(slices.Clone(o.Mounts), mount.FolderLayer(s.empty))
	} else {
		o.Layers = append(o.Layers, emptyName)
	}
	root := t.TempDir()
	if err := o.On(root); err != nil {
		t.Fatal(err)
	}
	for path, want := range m.content[id] {
		if got, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(got) != want {
			t.Errorf("%s of %s: %d bytes, %v", path, id, len(got), err)
		}
	}
	if err := mount.DetachOverlay(root); err != nil {
		t.Fatal(err)
	}
}

// clear removes all; what broken pulls have left is kept for a while, which is over here.
func (m model) clear(t *testing.T, s *Store, dir string) {
	t.Helper()
	ids, err := s.Rootfses()
	for _, id := range ids {
		err = errors.Join(err, s.RemoveRootfs(t.Context(), id))
	}
	all, lerr := s.leases.List(scoped(t.Context()))
	for _, l := range all {
		if strings.HasPrefix(l.ID, resumePrefix) {
			err = errors.Join(err, s.leases.Delete(scoped(t.Context()), l))
		}
	}
	if err = errors.Join(err, lerr); err != nil {
		t.Fatal(err)
	}
	assertOnly(t, s, dir, s.List()...)
}
