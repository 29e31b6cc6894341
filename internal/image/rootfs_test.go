// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/linux/userns"
)

// tarLayer makes a layer of headers, in order.
func tarLayer(t *testing.T, headers ...tar.Header) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// mounted mounts a new container's root file system until the end of the test.
func mounted(t *testing.T, s *Store, im Image) string {
	t.Helper()
	id := fmt.Sprintf("m%d", containers.Add(1))
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: im.ID})
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := r.Root.On(target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return target
}

func TestAnImageOf120LayersIsMounted(t *testing.T) {
	reg := newRegistry(t)
	layers := make([]v1.Layer, 120)
	for i := range layers {
		layers[i] = layerOf(t, map[string]string{fmt.Sprintf("f%d", i): fmt.Sprint(i), "last": fmt.Sprint(i)})
	}
	ref := reg.push(t, "deep:1", imageOf(t, v1.Config{}, layers...))
	for kind, dir := range map[string]string{"short root": t.TempDir(), "long root": filepath.Join(t.TempDir(), strings.Repeat("x", 200))} {
		t.Run(kind, func(t *testing.T) {
			if kind == "short root" && !fullSize {
				t.Skip("the other one has less room: make test-registry")
			}
			s := openStore(t, dir)
			im := mustPull(t, s, ref)
			if im.Layers != 120 {
				t.Errorf("%d layers", im.Layers)
			}
			at := mounted(t, s, im)
			for file, want := range map[string]string{"f0": "0", "f119": "119", "last": "119"} {
				if got, err := os.ReadFile(filepath.Join(at, file)); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", file, got, err)
				}
			}
		})
	}
}

func TestTheMostLayersThatAreAcceptedFitAtTheUsualPlace(t *testing.T) {
	s := &Store{cfg: Config{Root: "/var/lib/berth/image"}, options: []string{"index=off", "volatile"}}
	c := &chain{}
	for range maxLayers {
		c.links = append(c.links, "zzz") // 46655 layers were there before
	}
	o, err := s.overlay(t.Context(), c, &Rootfs{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := "/var/lib/berth/rootfs/" + strings.Repeat("a", 64)
	o.Upper, o.Work = dir+"/upper", dir+"/work"
	if o.Size() >= os.Getpagesize() {
		t.Errorf("the options take %d bytes", o.Size())
	}
}

func TestAnImageWithoutLayersIsMounted(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	at := mounted(t, s, mustPull(t, s, reg.push(t, "scratch:1", imageOf(t, v1.Config{Cmd: []string{"x"}}))))
	if err := os.WriteFile(filepath.Join(at, "new"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

func TestFoldersThatALayerOnlyGoesIntoKeepTheirAttributes(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	then := time.Unix(1500000000, 0)
	im := mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{},
		tarLayer(t, tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, ModTime: then},
			tar.Header{Typeflag: tar.TypeDir, Name: "home/", Mode: 0o750, Uid: 7, Gid: 8, ModTime: then},
			tar.Header{Typeflag: tar.TypeDir, Name: "home/me/", Mode: 0o700, Uid: 9, Gid: 9, ModTime: then}),
		tarLayer(t, tar.Header{Typeflag: tar.TypeReg, Name: "other", Mode: 0o600}),
		tarLayer(t, tar.Header{Typeflag: tar.TypeReg, Name: "tmp/x", Mode: 0o600}, tar.Header{Typeflag: tar.TypeReg, Name: "home/me/x/y", Mode: 0o600}))))
	at := mounted(t, s, im)
	for dir, want := range map[string]struct {
		mode     os.FileMode
		uid, gid uint32
	}{"tmp": {os.ModeDir | os.ModeSticky | 0o777, 0, 0}, "home": {os.ModeDir | 0o750, 7, 8}, "home/me": {os.ModeDir | 0o700, 9, 9}, "home/me/x": {os.ModeDir | 0o755, 0, 0}} {
		info, err := os.Stat(filepath.Join(at, dir))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode() != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: %s %d:%d, want %+v", dir, info.Mode(), st.Uid, st.Gid, want)
		}
	}
}

func TestHostileLayersStayInTheirFolder(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("safe"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 30)
	for kind, headers := range map[string][]tar.Header{
		"dots":            {{Typeflag: tar.TypeReg, Name: up + victim, Mode: 0o600}},
		"absolute":        {{Typeflag: tar.TypeReg, Name: victim, Mode: 0o600}},
		"link to folder":  {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside}, {Typeflag: tar.TypeReg, Name: "l/victim", Mode: 0o600}},
		"link to file":    {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: victim}, {Typeflag: tar.TypeReg, Name: "l", Mode: 0o600}},
		"hard link":       {{Typeflag: tar.TypeLink, Name: "l", Linkname: up + victim}, {Typeflag: tar.TypeReg, Name: "l", Mode: 0o600}},
		"whiteout":        {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside}, {Typeflag: tar.TypeReg, Name: "l/.wh.victim"}},
		"whiteout dots":   {{Typeflag: tar.TypeReg, Name: ".wh..."}, {Typeflag: tar.TypeReg, Name: ".wh.."}},
		"opaque":          {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside}, {Typeflag: tar.TypeReg, Name: "l/.wh..wh..opq"}},
		"implied by link": {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: up + outside}, {Typeflag: tar.TypeReg, Name: "l/a/b/c", Mode: 0o600}},
	} {
		t.Run(kind, func(t *testing.T) {
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			// Accepted or refused: both are fine, as long as nothing outside has changed.
			_, err := s.Pull(t.Context(), PullRequest{Ref: reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"base": ""}), tarLayer(t, headers...)))})
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			}
			if got, err := os.ReadFile(victim); err != nil || string(got) != "safe" {
				t.Errorf("outside: %q, %v", got, err)
			}
			if all, err := os.ReadDir(outside); err != nil || len(all) != 1 {
				t.Errorf("outside: %v, %v", all, err)
			}
		})
	}
}

func TestOverlayAttributesOfAnImageAreDropped(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	h := tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/secret", "SCHILY.xattr.user.kept": "1"}}
	at := mounted(t, s, mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"secret/key": "x"}), tarLayer(t, h)))))
	if _, err := os.Stat(filepath.Join(at, "d", "key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image redirects folders: %v", err)
	}
	if n, err := syscall.Getxattr(filepath.Join(at, "d"), "user.kept", make([]byte, 8)); err != nil || n != 1 {
		t.Errorf("other attributes: %d, %v", n, err)
	}
}

func TestARemovedRootfsIsDeletedInTheBackground(t *testing.T) {
	dir := t.TempDir()
	reg, s := newRegistry(t), openStore(t, dir)
	im := mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"}))))
	outside := t.TempDir()
	for range 2 { // the same ID again
		if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: im.ID}); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(dir, "rootfs", "c", "upper", "l")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if ids, err := s.Rootfses(); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v", ids, err)
	}
	eventually(t, "the trash is empty", func() bool {
		all, err := os.ReadDir(s.trash())
		return err == nil && len(all) == 0
	})
	if _, err := os.Stat(outside); err != nil {
		t.Error("a link was followed")
	}
	for _, id := range []string{"", "..", "a/b", "../x", "A", "trash\x00"} {
		if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: im.ID}); err == nil {
			t.Errorf("ID %q is accepted", id)
		}
		if err := s.RemoveRootfs(t.Context(), id); err == nil {
			t.Errorf("ID %q is accepted for removal", id)
		}
	}
}

// at mounts an overlay until the end of the test.
func at(t *testing.T, o mount.Overlay) string {
	t.Helper()
	target := t.TempDir()
	if err := o.On(target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.DetachOverlay(target); err != nil {
			t.Error(err)
		}
	})
	return target
}

func ownerOf(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

func TestImageVolumesHoldTheirLayersUntilTheContainerIsRemoved(t *testing.T) {
	dir := t.TempDir()
	reg, s := newRegistry(t), openStore(t, dir)
	base := mustPull(t, s, reg.push(t, "base:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "base"}))))
	dataRef := reg.push(t, "data:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "data"})))
	data := mustPull(t, s, dataRef)
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: base.ID, VolumeIDs: []string{data.ID}})
	if err != nil || len(r.Volumes) != 1 {
		t.Fatal(r, err)
	}
	volume := at(t, r.Volumes[0])
	if err := os.WriteFile(volume+"/new", nil, 0o600); err == nil {
		t.Error("an image volume can be written to")
	}
	remove := func(s *Store) {
		if err := s.Remove(t.Context(), dataRef); err != nil {
			t.Fatal(err)
		}
		if err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	remove(s)
	if got, err := os.ReadFile(volume + "/f"); err != nil || string(got) != "data" {
		t.Errorf("after the image's removal: %q, %v", got, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir) // another life
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(volume + "/f"); err != nil || string(got) != "data" {
		t.Errorf("in another life: %q, %v", got, err)
	}
	s.mu.Lock()
	layer := s.chains[data.ChainID].folders[0]
	s.mu.Unlock()
	if _, err := os.Stat(layer); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the volume's layer is collected", func() bool { _, err := os.Stat(layer); return os.IsNotExist(err) })
}

func TestARootFileSystemIsMappedForItsOwner(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	if err := s.MappedLayers(); err != nil {
		t.Fatal(err)
	}
	im := mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{},
		tarLayer(t, tar.Header{Typeflag: tar.TypeReg, Name: "mine", Mode: 0o600, Uid: 7}, tar.Header{Typeflag: tar.TypeReg, Name: "high", Mode: 0o600, Uid: 70000}))))
	ns, err := userns.Open(userns.Mapping{UIDs: userns.Range{Host: 1 << 20, Size: 65536}, GIDs: userns.Range{Host: 1 << 20, Size: 65536}})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	owner := &Owner{UserNS: fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), UID: 1 << 20, GID: 1 << 20}
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: im.ID, VolumeIDs: []string{im.ID}, Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	root, volume := at(t, r.Root), at(t, r.Volumes[0])
	for path, want := range map[string]int{root: 1 << 20, root + "/mine": 1<<20 + 7, volume + "/mine": 1<<20 + 7, root + "/high": 65534} {
		if got := ownerOf(t, path); got != want {
			t.Errorf("%s belongs to %d, want %d", path, got, want)
		}
	}
	if err := s.FillVolumes(t.Context(), FillRequest{ID: "c", Root: root, Places: []string{"/none"}, Owner: owner}); err != nil {
		t.Fatal(err)
	}
	if got := ownerOf(t, s.VolumeFolder("c", 0)); got != 1<<20 {
		t.Errorf("an empty volume belongs to %d", got)
	}
}

func TestAnonymousVolumesHaveWhatTheImageHasThere(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	outside := t.TempDir()
	im := mustPull(t, s, reg.push(t, "x:1", imageOf(t, v1.Config{}, tarLayer(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o1770, Uid: 7, Gid: 8},
		tar.Header{Typeflag: tar.TypeReg, Name: "data/f", Mode: 0o4755, Uid: 9},
		tar.Header{Typeflag: tar.TypeLink, Name: "data/hard", Linkname: "data/f", Mode: 0o4755, Uid: 9},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "data/soft", Linkname: outside},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "inside", Linkname: "/data"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../../../../../../.." + outside},
		tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o600}))))
	if err := os.WriteFile(outside+"/secret", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "c", ImageID: im.ID})
	if err != nil {
		t.Fatal(err)
	}
	root := at(t, r.Root)
	for range 2 { // idempotent
		if err := s.FillVolumes(t.Context(), FillRequest{ID: "c", Root: root, Places: []string{"/data", "/inside", "/missing", "/out"}}); err != nil {
			t.Fatal(err)
		}
	}
	for n, entries := range []int{3, 3, 0, 0} {
		if all, err := os.ReadDir(s.VolumeFolder("c", n)); err != nil || len(all) != entries {
			t.Errorf("volume %d: %v, %v", n, all, err)
		}
	}
	folder := s.VolumeFolder("c", 0)
	info, err := os.Stat(folder)
	if err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o770 || ownerOf(t, folder) != 7 {
		t.Errorf("%v, %v", info, err)
	}
	f, err := os.Stat(folder + "/f")
	if err != nil || f.Mode() != os.ModeSetuid|0o755 || ownerOf(t, folder+"/f") != 9 {
		t.Errorf("%v, %v", f, err)
	}
	if hard, err := os.Stat(folder + "/hard"); err != nil || !os.SameFile(f, hard) {
		t.Errorf("%v, %v", hard, err)
	}
	if to, err := os.Readlink(folder + "/soft"); err != nil || to != outside {
		t.Errorf("%s, %v", to, err)
	}
	if err := s.FillVolumes(t.Context(), FillRequest{ID: "c", Root: root, Places: []string{"/file"}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a file as a volume: %v", err)
	}
	if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("volumes outlive their container: %v", err)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 6000 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("never: %s", what)
}
