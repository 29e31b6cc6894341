// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	bolt "go.etcd.io/bbolt"
)

const childEnv = "BERTH_IMAGE_TEST_PULL"

// TestMain is also the daemon that gets killed: it pulls and never ends by itself.
func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		dir, ref, _ := strings.Cut(what, " ")
		s, err := Open(context.Background(), childConfig(dir), slog.New(slog.DiscardHandler))
		if err == nil {
			_, err = s.Pull(context.Background(), PullRequest{Ref: ref})
		}
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
	if what := os.Getenv(modelEnv); what != "" {
		fmt.Fprintln(os.Stderr, "child:", modelChild(what))
		os.Exit(3)
	}
	os.Exit(m.Run())
}

func childConfig(dir string) Config {
	return Config{Root: filepath.Join(dir, "image"), Rootfs: filepath.Join(dir, "rootfs"), MaxConcurrentDownloads: 3, LayerConnections: 3,
		StallTimeout: 30 * time.Second, SkipSync: true}
}

// killInPull pulls in another process and kills it with SIGKILL once ready is closed.
func killInPull(t *testing.T, dir, ref string, ready <-chan struct{}) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir+" "+ref)
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ready:
	case <-time.After(time.Minute):
		t.Error("the pull did not come to the point")
	}
	time.Sleep(50 * time.Millisecond) // for what was sent to be on disk
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Success() || exit.Exited() {
		t.Fatalf("child ended by itself: %v %s", err, said.String())
	}
}

func TestAKilledPullIsTakenUpAndNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	reg := newRegistry(t)
	pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"whole": incompressible(300_000)}), layerOf(t, map[string]string{"half": incompressible(2 << 20)}))
	ref := reg.push(t, "x:1", pushed)
	whole, half := layerPath(t, pushed, 0), layerPath(t, pushed, 1)
	ready := make(chan struct{})
	var once sync.Once
	var wholes, resumed atomic.Int64
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		switch {
		case strings.HasSuffix(r.URL.Path, whole):
			wholes.Add(1)
		case strings.HasSuffix(r.URL.Path, half):
			blob := reg.blob(t, r.URL.Path)
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			w.Write(blob[:1<<20])
			w.(http.Flusher).Flush()
			time.Sleep(300 * time.Millisecond) // the other layer is done by then
			once.Do(func() { close(ready) })
			<-r.Context().Done()
			return true
		}
		return false
	})
	killInPull(t, dir, ref, ready)
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, whole):
			wholes.Add(1)
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, half):
			if r.Header.Get("Range") != "" {
				resumed.Add(1)
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(reg.blob(t, r.URL.Path)))
			return true
		}
		return false
	})
	s := openStore(t, dir)
	if n := len(s.List()); n != 0 {
		t.Errorf("%d half images are visible", n)
	}
	if err := s.GC(t.Context()); err != nil { // must leave what can be resumed
		t.Fatal(err)
	}
	im := mustPull(t, s, ref)
	if wholes.Load() != 1 || resumed.Load() != 1 {
		t.Errorf("the whole layer was fetched %d times, the half one resumed %d times; want 1 and 1", wholes.Load(), resumed.Load())
	}
	if got := readInRootfs(t, s, im, "half"); got != incompressible(2<<20) {
		t.Error("content is wrong")
	}
	assertOnly(t, s, dir, im)
}

// filesOf is all that a store has of images.
func filesOf(t *testing.T, dir string) (all []string) {
	t.Helper()
	for _, sub := range []string{"image/content/blobs/sha256", "image/content/ingest", "image/overlayfs/snapshots", "image/l"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if sub != "image/l" || e.Name() != emptyName {
				all = append(all, sub+"/"+e.Name())
			}
		}
	}
	return all
}

// assertOnly checks that the store has nothing but these images, after their removal nothing.
func assertOnly(t *testing.T, s *Store, dir string, images ...Image) {
	t.Helper()
	if all, err := s.leases.List(scoped(t.Context())); err != nil || len(all) != 0 {
		t.Errorf("leases are left: %v, %v", all, err)
	}
	for _, im := range images {
		if err := s.Remove(t.Context(), im.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.suspect(scoped(t.Context())), s.GC(t.Context())); err != nil {
		t.Fatal(err)
	}
	// A collection of the store's own may be under way, which has deleted the metadata and not yet the files.
	var left []string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if left = filesOf(t, dir); len(left) == 0 || time.Now().After(end) {
			break
		}
		if err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range left {
		t.Errorf("left: %s", file)
	}
	if info, err := s.FSInfo(t.Context()); err != nil || info.UsedBytes != 0 || info.InodesUsed != 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestDownloadsThatTheContentStoreCannotFindAreSwept(t *testing.T) {
	dir := t.TempDir()
	ingests := filepath.Join(dir, "image/content/ingest")
	parts := []string{"data", "ref", "startedat", "updatedat"}
	for missing := range parts {
		for _, part := range slices.Delete(slices.Clone(parts), missing, missing+1) {
			path := filepath.Join(ingests, "without-"+parts[missing], part)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	openStore(t, dir)
	left, err := os.ReadDir(ingests)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAMountThatAKilledDaemonWasTryingGoes(t *testing.T) {
	dir := t.TempDir()
	probe := filepath.Join(dir, "image", trashName, probePrefix+"killed")
	for _, name := range []string{"at", "at2"} {
		at := filepath.Join(probe, name)
		if err := errors.Join(os.MkdirAll(at, 0o700), syscall.Mount("probe", at, "tmpfs", 0, "")); err != nil {
			t.Fatal(err)
		}
	}
	openStore(t, dir)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), probe) {
		t.Errorf("it is mounted still, %v:\n%s", err, mounts)
	}
	eventually(t, "the folder is gone", func() bool {
		_, err := os.Lstat(probe)
		return errors.Is(err, os.ErrNotExist)
	})
}

func TestAfterARebootNothingHalfIsTrusted(t *testing.T) {
	dir := t.TempDir()
	reg := newRegistry(t)
	pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"whole": "x"}), layerOf(t, map[string]string{"half": incompressible(2 << 20)}))
	ref, half := reg.push(t, "x:1", pushed), layerPath(t, pushed, 1)
	ready := make(chan struct{})
	var once sync.Once
	reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, half) {
			time.Sleep(300 * time.Millisecond)
			once.Do(func() { close(ready) })
			<-r.Context().Done()
			return true
		}
		return false
	})
	killInPull(t, dir, ref, ready)
	reg.misbehave(nil)
	reboot(t, dir)
	s := openStore(t, dir)
	s.walkSnapshots(t, func(name string) {
		if strings.HasPrefix(name, "sha256:") {
			t.Errorf("layer %s is trusted, and nobody knows whether its files are on disk", name)
		}
	})
	mustPull(t, s, ref)
}

func TestABrokenStoreIsSetAside(t *testing.T) {
	for _, file := range []string{"metadata.db", "overlayfs/metadata.db"} {
		t.Run(file, func(t *testing.T) {
			dir := t.TempDir()
			reg, s := newRegistry(t), openStore(t, dir)
			ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
			mustPull(t, s, ref)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			at := filepath.Join(dir, "image", file)
			info, err := os.Stat(at)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, bytes.Repeat([]byte{0xa5}, int(info.Size())), 0o600); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, dir)
			if len(s.List()) != 0 {
				t.Error("images of a broken store")
			}
			if got := readInRootfs(t, s, mustPull(t, s, ref), "f"); got != "x" {
				t.Errorf("got %q", got)
			}
			aside, err := filepath.Glob(filepath.Join(dir, "image", brokenPrefix+"*", "overlayfs", "snapshots", "*"))
			if err != nil || len(aside) == 0 {
				t.Errorf("layers of containers that run are gone: %v, %v", aside, err)
			}
		})
	}
}

func TestASecondOpenerIsRefused(t *testing.T) {
	t.Parallel() // it waits
	dir := t.TempDir()
	openStore(t, dir)
	if s, err := Open(t.Context(), childConfig(dir), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("opened twice")
		s.Close()
	}
	if all, err := filepath.Glob(filepath.Join(dir, "image", brokenPrefix+"*")); err != nil || len(all) != 0 {
		t.Errorf("the store of another was set aside: %v %v", all, err)
	}
}

func TestCompressedLayersAreNotKept(t *testing.T) {
	for _, keep := range []bool{false, true} {
		dir := t.TempDir()
		reg, s := newRegistry(t), openWith(t, dir, func(c *Config) { c.KeepLayers = keep })
		pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(100_000)}))
		im := mustPull(t, s, reg.push(t, "x:1", pushed))
		if err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, digest, _ := strings.Cut(layerPath(t, pushed, 0), "sha256:")
		// The collector in the background may have been faster, and still be at it.
		kept := func() bool {
			_, err := os.Stat(filepath.Join(dir, "image/content/blobs/sha256", digest))
			return err == nil
		}
		for end := time.Now().Add(10 * time.Second); kept() != keep && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if kept() != keep {
			t.Errorf("keep %t, kept %t", keep, kept())
		}
		if got, err := s.Status(im.ID); err != nil || got.Size != im.Size {
			t.Errorf("%v %v", got, err)
		}
		assertOnly(t, s, dir, im)
	}
}

func TestFoldersAreForRootAlone(t *testing.T) {
	dir := t.TempDir()
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	openStore(t, dir)
	for _, sub := range []string{"image", "image/overlayfs", "image/l", "image/trash", "rootfs"} {
		if info, err := os.Stat(filepath.Join(dir, sub)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", sub, info.Mode(), err)
		}
	}
}

func TestNamesComeBeforeBeginningsOfIDs(t *testing.T) {
	s := openStore(t, t.TempDir())
	id := "sha256:deadbeef" + strings.Repeat("0", 56)
	other := "sha256:" + strings.Repeat("1", 64)
	s.index.Store(&index{byID: map[string]*Image{id: {ID: id}, other: {ID: other}}, byRef: map[string]string{"docker.io/library/deadbeef:latest": other}})
	for ref, want := range map[string]string{"deadbeef": other, "deadbeef0": id, "sha256:deadbeef": id, "dead": "", "d": "", id[7:]: id, "sha256:1": ""} {
		if got, err := s.Status(ref); got.ID != want || (want == "") != errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %q, %v; want %q", ref, got.ID, err, want)
		}
	}
	if _, err := s.Status("user:hunter2@registry/x"); !errors.Is(err, ErrInvalidReference) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestPinnedImages(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "infra/x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	for pattern, want := range map[string]bool{ref: true, reg.host() + "/infra/*": true, reg.host() + "/other/*": false, reg.host() + "/*/x:1": true} {
		s := openWith(t, t.TempDir(), func(c *Config) { c.Pinned = []string{pattern} })
		if got := mustPull(t, s, ref).Pinned; got != want {
			t.Errorf("%s: %t", pattern, got)
		}
	}
}

// reboot has a store that is closed take this boot of the machine for another than its last.
func reboot(t *testing.T, dir string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "image", "metadata.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket(ownBucket).Put(bootKey, []byte("another boot")) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}
