// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/linux/userns"
	"github.com/berth-run/berth/test/registry"
	"github.com/berth-run/berth/test/snapshotter"
)

func remotely(r *snapshotter.Server) func(*Config) {
	return func(c *Config) {
		c.Snapshotter, c.Remotes = "lazy", []Remote{{Name: "lazy", Address: r.Address, Timeout: 20 * time.Second}}
	}
}

// impatient is for snapshotters that hang.
func impatient(r *snapshotter.Server) func(*Config) {
	return func(c *Config) {
		remotely(r)(c)
		c.Remotes[0].Timeout = 300 * time.Millisecond
	}
}

// has makes a layer of an image one that the snapshotter needs no download for.
func has(t *testing.T, r *snapshotter.Server, im v1.Image, layers ...int) {
	t.Helper()
	all, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range layers {
		d, err := all[i].Digest()
		if err != nil {
			t.Fatal(err)
		}
		r.Has(d.String(), func() (io.ReadCloser, error) { return all[i].Compressed() })
	}
}

func threeLayers(t *testing.T) v1.Image {
	t.Helper()
	return imageOf(t, v1.Config{}, layerOf(t, map[string]string{"dir/low": "1", "gone": "x", "same": "low"}),
		layerOf(t, map[string]string{"dir/mid": "2", ".wh.gone": "", "same": "mid"}), layerOf(t, map[string]string{"top": "3", "same": "top"}))
}

func wantThree(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]string{"dir/low": "1", "dir/mid": "2", "top": "3", "same": "top"} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
}

func rootOf(t *testing.T, s *Store, im Image, id string, owner *Owner) string {
	t.Helper()
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: im.ID, Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	held := map[string]bool{}
	for _, l := range r.Root.Mounts {
		folder, err := os.Readlink(strings.TrimSuffix(l.Path(), "/"))
		if err != nil {
			t.Fatal(err)
		}
		held[folder] = true
	}
	root := at(t, r.Root)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if im.Snapshotter == "" {
		return root
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil || len(held) == 0 {
		t.Fatal(held, err)
	}
	for _, e := range open {
		if folder, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && held[folder] {
			t.Errorf("%s is still open: its snapshotter cannot unmount it", folder)
		}
	}
	return root
}

func emptied(t *testing.T, s *Store, r *snapshotter.Server) {
	t.Helper()
	eventually(t, "the snapshotter is empty", func() bool {
		if err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(r.Snapshots(t)) == 0
	})
}

func TestARemoteSnapshotterHasTheLayers(t *testing.T) {
	for _, kind := range []string{"overlayfs", "native"} {
		for name, present := range map[string][]int{"all": {0, 1, 2}, "the lowest": {0}, "one in the middle": {1}, "none": nil} {
			t.Run(kind+" has "+name, func(t *testing.T) {
				reg, dir, r := newRegistry(t), t.TempDir(), snapshotter.Start(t, kind, t.TempDir())
				pushed := threeLayers(t)
				has(t, r, pushed, present...)
				ref := reg.push(t, "app:1", pushed)
				s := openWith(t, dir, remotely(r))
				im := mustPull(t, s, ref)
				if fetched := reg.blobs.Load() - 1; len(present) == 3 && fetched != 0 || len(present) == 0 && fetched != 3 {
					t.Errorf("%d layers were fetched", fetched)
				}
				if im.Snapshotter != "lazy" || len(blobsOf(t, s)) > 0 {
					t.Errorf("got %+v, blobs %v", im, blobsOf(t, s))
				}
				wantThree(t, rootOf(t, s, im, "c", nil))
				labels := r.Prepared()[0]
				for key, want := range map[string]string{"containerd.io/snapshot/cri.image-ref": ref, "containerd.io/snapshot/cri.layer-digest": digestOf(t, pushed, 0).String(),
					"containerd.io/snapshot/cri.image-layers":    strings.Join([]string{digestOf(t, pushed, 0).String(), digestOf(t, pushed, 1).String(), digestOf(t, pushed, 2).String()}, ","),
					"containerd.io/snapshot/cri.manifest-digest": strings.Split(im.RepoDigests[0], "@")[1]} {
					if labels[key] != want {
						t.Errorf("label %s is %q, want %q", key, labels[key], want)
					}
				}
				if !strings.HasPrefix(labels[snapshots.LabelSnapshotRef], "sha256:") {
					t.Errorf("labels: %v", labels)
				}
				if info, err := s.FSInfo(t.Context()); err != nil || info.UsedBytes == 0 {
					t.Errorf("%+v, %v", info, err)
				}
				if got, damages := check(t, s, false); len(damages) > 0 || got.Unchecked != 3 {
					t.Errorf("check: %+v, %v", got, damages)
				}
				if err := errors.Join(s.Remove(t.Context(), ref), s.GC(t.Context())); err != nil {
					t.Fatal(err)
				}
				if left := r.Snapshots(t); len(left) < 2 {
					t.Errorf("a container has the image, the snapshotter only %v", left)
				}
				if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
					t.Fatal(err)
				}
				emptied(t, s, r)
				assertOnly(t, s, dir)
			})
		}
	}
}

func TestARemoteImageInAUserNamespace(t *testing.T) {
	reg, r := newRegistry(t), snapshotter.Start(t, "overlayfs", t.TempDir())
	pushed := threeLayers(t)
	has(t, r, pushed, 0, 1, 2)
	s := openWith(t, t.TempDir(), remotely(r))
	im := mustPull(t, s, reg.push(t, "app:1", pushed))
	ns, err := userns.Open(userns.Mapping{UIDs: userns.Range{Host: 1 << 20, Size: 65536}, GIDs: userns.Range{Host: 1 << 20, Size: 65536}})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	root := rootOf(t, s, im, "c", &Owner{UserNS: fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), UID: 1 << 20, GID: 1 << 20})
	wantThree(t, root)
	if got := ownerOf(t, root+"/top"); got != 1<<20 {
		t.Errorf("belongs to %d", got)
	}
}

func TestARemoteSnapshotterThatFailsHarmsItsImagesOnly(t *testing.T) {
	reg, dir, r := newRegistry(t), t.TempDir(), snapshotter.Start(t, "overlayfs", t.TempDir())
	pushed := threeLayers(t)
	has(t, r, pushed, 0, 1, 2)
	ref := reg.push(t, "app:1", pushed)
	s := openWith(t, dir, remotely(r))
	im := mustPull(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	other := threeLayers2(t, reg)
	for name, fault := range map[string]func(){
		"hangs": func() { r.Fail(snapshotter.Hang) },
		"fails": func() { r.Fail(func(context.Context, string) error { return errors.New("out of order") }) },
		"is down": func() {
			r.Fail(nil)
			r.Stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "is down" { // what was down before serves again
				r.Stop()
				r.Serve(t)
			}
			fault()
			begin := time.Now()
			s := openWith(t, dir, impatient(r))
			if took := time.Since(begin); took > time.Minute {
				t.Errorf("open took %s", took)
			}
			if got, err := s.Status(ref); err != nil || got.ID != im.ID {
				t.Errorf("listed: %+v, %v", got, err)
			}
			for what, do := range map[string]func() error{
				"rootfs": func() error {
					_, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: im.ID})
					return err
				},
				"pull": func() error {
					_, err := s.Pull(t.Context(), PullRequest{Ref: other})
					return err
				},
			} {
				if err := do(); !errors.Is(err, ErrSnapshotter) || !strings.Contains(err.Error(), "lazy") {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := s.GC(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			// With its own forms the store works beside it.
			s = openWith(t, dir, func(c *Config) {
				impatient(r)(c)
				c.Snapshotter = erofsForm
			})
			mine := mustPull(t, s, other)
			if mine.Snapshotter != "" {
				t.Errorf("%+v", mine)
			}
			wantThree(t, rootOf(t, s, mine, "d", nil))
			if err := errors.Join(s.RemoveRootfs(t.Context(), "d"), s.Remove(t.Context(), other), s.Close()); err != nil {
				t.Fatal(err)
			}
		})
	}
	r.Stop()
	r.Fail(nil)
	r.Serve(t)
	s = openWith(t, dir, remotely(r))
	wantThree(t, rootOf(t, s, im, "c", nil))
	if err := errors.Join(s.RemoveRootfs(t.Context(), "c"), s.Remove(t.Context(), ref)); err != nil {
		t.Fatal(err)
	}
	emptied(t, s, r)
}

// threeLayers2 pushes another image.
func threeLayers2(t *testing.T, reg *registryServer) string {
	t.Helper()
	return reg.push(t, "other:1", imageOf(t, v1.Config{User: "7"}, layerOf(t, map[string]string{"dir/low": "1", "dir/mid": "2", "top": "3", "same": "top"})))
}

// TestWhyARemoteLayerCouldNotBeFetchedIsTold: who waits for it must not take it for fetched.
func TestWhyARemoteLayerCouldNotBeFetchedIsTold(t *testing.T) {
	reg, r := newRegistry(t), snapshotter.Start(t, "overlayfs", t.TempDir())
	pushed := threeLayers(t)
	ref, lowest := reg.push(t, "app:1", pushed), layerPath(t, pushed, 0)
	s := openWith(t, t.TempDir(), remotely(r))
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, lowest) {
			http.Error(w, "no", http.StatusForbidden)
			return true
		}
		return false
	})
	for range 3 {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrUnauthorized) {
			t.Fatalf("got %v", err)
		}
	}
}

func TestAnswersThatMakeNoSense(t *testing.T) {
	reg, r := newRegistry(t), snapshotter.Start(t, "overlayfs", t.TempDir())
	pushed := threeLayers(t)
	has(t, r, pushed, 0, 1, 2)
	ref := reg.push(t, "app:1", pushed)
	s := openWith(t, t.TempDir(), remotely(r))
	im := mustPull(t, s, ref)
	other := threeLayers2(t, reg)
	for name, lie := range map[string][]mount.Mount{
		"nothing":        nil,
		"two mounts":     {{Type: "bind", Source: "/etc"}, {Type: "bind", Source: "/etc"}},
		"a device":       {{Type: "ext4", Source: "/dev/sda"}},
		"a relative one": {{Type: "bind", Source: "../etc"}},
		"the root":       {{Type: "bind", Source: "/"}},
		"no folders":     {{Type: "overlay", Options: []string{"ro"}}},
		"many":           {{Type: "overlay", Options: []string{"lowerdir=" + strings.Repeat("/etc:", 500) + "/etc"}}},
		"a missing one":  {{Type: "bind", Source: "/no/such/folder"}},
	} {
		t.Run(name, func(t *testing.T) {
			r.Lie(func([]mount.Mount) []mount.Mount { return lie })
			defer r.Lie(nil)
			for what, do := range map[string]func() error{
				"rootfs": func() error {
					_, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: im.ID})
					return err
				},
				"pull": func() error {
					_, err := s.Pull(t.Context(), PullRequest{Ref: other})
					return err
				},
			} {
				if err := do(); err == nil || !strings.Contains(err.Error(), "lazy") && name != "a missing one" {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
	wantThree(t, rootOf(t, s, im, "c", nil))
}

func TestLayersThatTheSnapshotterLostAreGotAgain(t *testing.T) {
	reg, dir, r := newRegistry(t), t.TempDir(), snapshotter.Start(t, "overlayfs", t.TempDir())
	pushed := threeLayers(t)
	has(t, r, pushed, 0, 1)
	ref := reg.push(t, "app:1", pushed)
	s := openWith(t, dir, remotely(r))
	im := mustPull(t, s, ref)
	wantThree(t, rootOf(t, s, im, "c", nil))
	if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	r.Forget(t)
	if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "d", ImageID: im.ID}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Status(ref); !errors.Is(err, ErrNotFound) {
		t.Errorf("it is listed: %v", err)
	}
	wantThree(t, rootOf(t, s, mustPull(t, s, ref), "e", nil))
}

func TestOnlyOwnSnapshotsAreCollected(t *testing.T) {
	reg, r := newRegistry(t), snapshotter.Start(t, "overlayfs", t.TempDir())
	foreign := "k8s.io/1/other"
	if _, err := r.Inner().Prepare(t.Context(), foreign, ""); err != nil {
		t.Fatal(err)
	}
	s := openWith(t, t.TempDir(), remotely(r))
	ref := reg.push(t, "app:1", threeLayers(t))
	mustPull(t, s, ref)
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the snapshotter has only what is another's", func() bool {
		if err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		return slices.Equal(r.Snapshots(t), []string{"Active " + foreign})
	})
}

func TestTheLabelsOfAnImageDoNotReplaceBerths(t *testing.T) {
	name, err := normalize("example.org/app:1")
	if err != nil {
		t.Fatal(err)
	}
	u := &unpacking{puller: &puller{name: name}, t: &tree{}}
	raw := `{"schemaVersion":2,"config":{"digest":"sha256:x"},"layers":[{"digest":"sha256:` + strings.Repeat("0", 64) + `","annotations":{
		"containerd.io/snapshot.ref":"evil","containerd.io/snapshot/cri.image-ref":"evil","containerd.io/gc.root":"evil","containerd.io/snapshot/stargz/toc.digest":"sha256:1"}}]}`
	doc, err := parseDocument(ocispec.Descriptor{}, []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	u.t.layers, u.t.chain = doc.Layers, append(u.t.chain, "sha256:chain")
	got := u.remoteLabels(0)
	if got[snapshots.LabelSnapshotRef] != "sha256:chain" || got["containerd.io/snapshot/cri.image-ref"] != "example.org/app:1" || got["containerd.io/gc.root"] != "" ||
		got["containerd.io/snapshot/stargz/toc.digest"] != "sha256:1" {
		t.Errorf("got %v", got)
	}
}

func TestLowerFolders(t *testing.T) {
	if got, err := lowerFolders(`/a\:b:/c\\d`); err != nil || !slices.Equal(got, []string{"/a:b", `/c\d`}) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAnArtifactStaysInTheStore(t *testing.T) {
	reg, r := newRegistry(t), snapshotter.Start(t, "overlayfs", t.TempDir())
	s := openWith(t, t.TempDir(), remotely(r))
	if im := mustPull(t, s, reg.pushArtifact(t, "m:1", registry.Artifact{Type: modelType, Files: []registry.ArtifactFile{{Name: "f", Data: []byte("x")}}})); im.Snapshotter != "" {
		t.Errorf("%+v", im)
	}
}
