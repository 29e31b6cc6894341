// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"log"
)

// registryServer is a registry that can be made to misbehave.
type registryServer struct {
	*httptest.Server
	mu     sync.Mutex
	before func(w http.ResponseWriter, r *http.Request) bool // true: answered
	blobs  atomic.Int64                                      // GETs of layer blobs
	inner  http.Handler
}

func newRegistry(t *testing.T) *registryServer {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := &registryServer{inner: inner}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		before := s.before
		s.mu.Unlock()
		if before != nil && before(w, r) {
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			s.blobs.Add(1)
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *registryServer) misbehave(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

func (s *registryServer) host() string { return strings.TrimPrefix(s.URL, "http://") }

func (s *registryServer) push(t *testing.T, ref string, im v1.Image) string {
	t.Helper()
	full := s.host() + "/" + ref
	r, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, im); err != nil {
		t.Fatal(err)
	}
	return full
}

func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for path, data := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layerOf(t *testing.T, files map[string]string) v1.Layer {
	return packedLayer(t, gzip.BestSpeed, files)
}

// storedLayer is one of large files that cannot be compressed: trying it takes longer than the tests that have them.
func storedLayer(t *testing.T, files map[string]string) v1.Layer {
	return packedLayer(t, gzip.NoCompression, files)
}

func packedLayer(t *testing.T, level int, files map[string]string) v1.Layer {
	t.Helper()
	raw := tarOf(t, files)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		tarball.WithCompressedCaching, tarball.WithCompressionLevel(level)) // it would be made anew for its digest, its size and each time that it is sent
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(t *testing.T, cfg v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	im, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	file, err := im.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Config, file.OS, file.Architecture = cfg, "linux", "amd64"
	if im, err = mutate.ConfigFile(im, file); err != nil {
		t.Fatal(err)
	}
	return im
}

func openStore(t *testing.T, dir string, certs ...string) *Store {
	t.Helper()
	return openWith(t, dir, func(c *Config) { c.CertsDirs = certs })
}

func openWith(t *testing.T, dir string, change func(*Config)) *Store {
	t.Helper()
	cfg := Config{Root: filepath.Join(dir, "image"), Rootfs: filepath.Join(dir, "rootfs"), MaxConcurrentDownloads: 3,
		StallTimeout: 30 * time.Second, SkipSync: true}
	change(&cfg)
	s, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustPull(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	im, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestAPulledImageIsFoundByTagDigestAndID(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	pushed := imageOf(t, v1.Config{User: "1000:5", Cmd: []string{"sh"}, Env: []string{"A=b"}, StopSignal: "SIGINT"}, layerOf(t, map[string]string{"a": "1"}))
	ref := reg.push(t, "app:v1", pushed)
	im := mustPull(t, s, ref)
	id, err := pushed.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := pushed.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if im.ID != id.String() || im.Size == 0 || im.UID == nil || *im.UID != 1000 || im.Username != "" || im.Cmd[0] != "sh" || im.StopSignal != "SIGINT" ||
		len(im.RepoTags) != 1 || im.RepoTags[0] != ref || len(im.RepoDigests) != 1 || !strings.HasSuffix(im.RepoDigests[0], "app@"+digest.String()) {
		t.Errorf("got %+v", im)
	}
	for _, by := range []string{ref, im.ID, strings.TrimPrefix(im.ID, "sha256:"), im.ID[:20], reg.host() + "/app@" + digest.String()} {
		if got, err := s.Status(by); err != nil || got.ID != im.ID {
			t.Errorf("by %s: %v, %v", by, got.ID, err)
		}
	}
	for _, by := range []string{"absent", "sha256:" + strings.Repeat("0", 64), reg.host() + "/app:v2"} {
		if _, err := s.Status(by); !errors.Is(err, ErrNotFound) {
			t.Errorf("by %s: %v", by, err)
		}
	}
	if _, err := s.Status("Not A Reference"); !errors.Is(err, ErrInvalidReference) {
		t.Error(err)
	}
	if all := s.List(); len(all) != 1 || all[0].ID != im.ID {
		t.Errorf("list %v", all)
	}
	if info, err := s.FSInfo(t.Context()); err != nil || info.UsedBytes < im.Size || info.InodesUsed == 0 {
		t.Errorf("%+v, %v", info, err)
	}
	for range 2 {
		if err := s.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.List()) != 0 {
		t.Error("still listed after removal")
	}
}

func TestManifestsAndLayersOfAllKinds(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	docker := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"docker": "x"}))
	oci := mutate.ConfigMediaType(mutate.MediaType(imageOf(t, v1.Config{}, layerOf(t, map[string]string{"oci": "x"})), types.OCIManifestSchema1), types.OCIConfigJSON)
	raw := tarOf(t, map[string]string{"zstd": "x"})
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(raw)
	w.Close()
	zst := zstdImage(t, raw, b.Bytes())
	refs := map[string]string{"docker": reg.push(t, "docker:1", docker), "oci": reg.push(t, "oci:1", oci), "zstd": reg.push(t, "zstd:1", zst)}
	// An index whose other entry is of a platform that nobody has.
	other := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"other": "x"}))
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "plan9", Architecture: "mips"}}},
		mutate.IndexAddendum{Add: docker, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	full := reg.host() + "/index:1"
	r, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(r, idx); err != nil {
		t.Fatal(err)
	}
	refs["index"] = full
	for kind, ref := range refs {
		im := mustPull(t, s, ref)
		want := kind
		if kind == "index" {
			want = "docker"
		}
		if got := readInRootfs(t, s, im, want); got != "x" {
			t.Errorf("%s: file %s has %q", kind, want, got)
		}
	}
}

func zstdImage(t *testing.T, raw, compressed []byte) v1.Image {
	t.Helper()
	l := static.NewLayer(compressed, types.OCILayerZStd)
	im, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		mutate.Addendum{Layer: l, MediaType: types.OCILayerZStd})
	if err != nil {
		t.Fatal(err)
	}
	file, err := im.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	sum, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	file.RootFS.DiffIDs, file.OS, file.Architecture = []v1.Hash{sum}, "linux", "amd64"
	if im, err = mutate.ConfigFile(im, file); err != nil {
		t.Fatal(err)
	}
	return im
}

var containers atomic.Int64

// readInRootfs mounts a container's root file system for real and reads a file of it.
func readInRootfs(t *testing.T, s *Store, im Image, file string) string {
	t.Helper()
	id := fmt.Sprintf("c%d", containers.Add(1))
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: im.ID})
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := r.Root.On(target); err != nil {
		t.Fatal(err)
	}
	defer func() {
		// Detached: a process that another test is just starting has this one's files open for a moment.
		if err := errors.Join(syscall.Unmount(target, syscall.MNT_DETACH), s.RemoveRootfs(t.Context(), id)); err != nil {
			t.Error(err)
		}
	}()
	data, err := os.ReadFile(filepath.Join(target, file))
	if errors.Is(err, os.ErrNotExist) {
		return "(absent)"
	} else if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPlatformsThatAreNotThisNodes(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	with := func(os, arch string) string {
		im := imageOf(t, v1.Config{User: os + arch}, layerOf(t, map[string]string{"f": "x" + os}))
		file, err := im.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		file = file.DeepCopy()
		file.OS, file.Architecture = os, arch
		if im, err = mutate.ConfigFile(im, file); err != nil {
			t.Fatal(err)
		}
		return reg.push(t, "platform:"+os+"x", im)
	}
	if _, err := s.Pull(t.Context(), PullRequest{Ref: with("plan9", "mips")}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "plan9/mips") {
		t.Errorf("another platform: %v", err)
	}
	if got := readInRootfs(t, s, mustPull(t, s, with("", "")), "f"); got != "x" {
		t.Errorf("no platform at all: file has %q", got)
	}
}

func TestWhiteoutsHideWhatLowerLayersHave(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	im := mustPull(t, s, reg.push(t, "w:1", imageOf(t, v1.Config{},
		layerOf(t, map[string]string{"gone": "x", "dir/old": "x", "stays": "x"}), layerOf(t, map[string]string{".wh.gone": "", "dir/.wh..wh..opq": "", "dir/new": "y"}))))
	for file, want := range map[string]string{"gone": "(absent)", "dir/old": "(absent)", "dir/new": "y", "stays": "x"} {
		if got := readInRootfs(t, s, im, file); got != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
}

func TestLayersAreFetchedOnce(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	shared := layerOf(t, map[string]string{"shared": strings.Repeat("x", 1<<16)})
	one := reg.push(t, "one:1", imageOf(t, v1.Config{User: "one"}, shared))
	two := reg.push(t, "two:1", imageOf(t, v1.Config{User: "two"}, shared))
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() { mustPull(t, s, []string{one, two}[i%2]) })
	}
	wg.Wait()
	if n := reg.blobs.Load(); n != 3 { // two configurations, one layer
		t.Errorf("%d blobs were fetched, want 3", n)
	}
	mustPull(t, s, one)
	if n := reg.blobs.Load(); n != 3 {
		t.Errorf("a second pull fetched %d blobs", n-3)
	}
}

func TestAMovedTagLeavesTheOldImageItsDigest(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	ref := reg.push(t, "m:1", imageOf(t, v1.Config{User: "a"}, layerOf(t, map[string]string{"a": ""})))
	old := mustPull(t, s, ref)
	reg.push(t, "m:1", imageOf(t, v1.Config{User: "b"}, layerOf(t, map[string]string{"b": ""})))
	if now := mustPull(t, s, ref); now.ID == old.ID {
		t.Fatal("the tag did not move")
	}
	if got, err := s.Status(old.ID); err != nil || len(got.RepoTags) != 0 || len(got.RepoDigests) != 1 {
		t.Errorf("old image: %+v, %v", got, err)
	}
}

func TestARemovedImageServesItsContainersUntilTheLastIsGone(t *testing.T) {
	for snapshotter, file := range map[string]string{overlayfs: "fs/f", erofsForm: blobName} {
		t.Run(snapshotter, func(t *testing.T) { removedImageServes(t, snapshotter, file) })
	}
}

// removedImageServes looks for a layer by a file of its snapshot.
func removedImageServes(t *testing.T, snapshotter, file string) {
	dir := t.TempDir()
	reg, s := newRegistry(t), openWith(t, dir, form(snapshotter))
	im := mustPull(t, s, reg.push(t, "u:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"}))))
	if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "user", ImageID: im.ID}); err != nil {
		t.Fatal(err)
	}
	lower := filepath.Join(filepath.Dir(s.chains[im.ChainID].folders[0]), file)
	there := func() bool { _, err := os.Stat(lower); return err == nil }
	if err := errors.Join(s.Remove(t.Context(), im.ID), s.GC(t.Context())); err != nil || !there() {
		t.Fatalf("layers of a running container are gone (%v)", err)
	}
	if err := s.Close(); err != nil { // a restart does not forget the user
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if err := s.GC(t.Context()); err != nil || !there() {
		t.Fatalf("layers of a running container are gone after a restart (%v)", err)
	}
	if err := errors.Join(s.RemoveRootfs(t.Context(), "user"), s.GC(t.Context())); err != nil || there() {
		t.Fatalf("layers that nobody needs are still there (%v)", err)
	}
	if ids, err := s.Rootfses(); err != nil || len(ids) != 0 {
		t.Errorf("left: %v, %v", ids, err)
	}
}

func TestCorruptLayersAreRefused(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	bad := static.NewLayer([]byte("this is no gzip"), types.DockerLayer)
	im, err := mutate.AppendLayers(empty.Image, bad)
	if err != nil {
		t.Fatal(err)
	}
	file, err := im.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	if im, err = mutate.ConfigFile(im, file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), PullRequest{Ref: reg.push(t, "bad:1", im)}); err == nil {
		t.Fatal("accepted")
	}
	if len(s.List()) != 0 {
		t.Error("a corrupt image is visible")
	}
}

func TestCredentialsGoToTheRegistryOnly(t *testing.T) {
	reg, mirror := newRegistry(t), newRegistry(t)
	ref := reg.push(t, "private/x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		user, pass, _ := r.BasicAuth()
		if user == "u" && pass == "right" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	var leaked atomic.Bool
	mirror.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	certs := t.TempDir()
	dir := filepath.Join(certs, reg.host())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", reg.URL, mirror.URL)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir(), certs)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: &Auth{Username: "u", Password: "wrong"}}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("wrong password: %v", err)
	}
	for name, a := range map[string]*Auth{"user and password": {Username: "u", Password: "right"}, "base64": {Auth: "dTpyaWdodA=="}} {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: a}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if leaked.Load() {
		t.Error("credentials went to a mirror")
	}
}

func TestADeadMirrorIsPassedOver(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	certs := t.TempDir()
	if err := os.MkdirAll(filepath.Join(certs, reg.host()), 0o700); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", reg.URL, dead.URL)
	if err := os.WriteFile(filepath.Join(certs, reg.host(), "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	mustPull(t, openStore(t, t.TempDir(), certs), ref)
}

func TestTheWaitEndsWithTheCallerAndTheNextOneJoins(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	hold := make(chan struct{})
	reg.misbehave(func(http.ResponseWriter, *http.Request) bool { <-hold; return false })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Pull(ctx, PullRequest{Ref: ref}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "still in progress") {
		t.Fatal(err)
	}
	close(hold)
	mustPull(t, s, ref)
}

func TestAnInterruptedPullIsTakenUpByTheNextLife(t *testing.T) {
	dir := t.TempDir()
	reg := newRegistry(t)
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": strings.Repeat("x", 1<<20)})))
	s := openStore(t, dir)
	blocked := make(chan struct{})
	var once sync.Once
	reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			once.Do(func() { close(blocked) })
			<-r.Context().Done()
			return true
		}
		return false
	})
	go s.Pull(context.Background(), PullRequest{Ref: ref})
	<-blocked
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	reg.misbehave(nil)
	s = openStore(t, dir)
	if len(s.List()) != 0 {
		t.Error("a half image is visible")
	}
	mustPull(t, s, ref)
}

func TestUsersOfImagesAreNumbersOrNames(t *testing.T) {
	for user, want := range map[string]string{"": "", "0": "0", "1000:1000": "1000", "www-data": "www-data", "www:5": "www", "99999999999": "error", "2147483648": "error"} {
		uid, name, err := parseUser(user)
		got := name
		if uid != nil {
			got = fmt.Sprint(*uid)
		}
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", user, got, want)
		}
	}
}
