// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// allocated is what a store takes of the disk now, in bytes.
func allocated(dir string) (bytes int64) {
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && syscall.Lstat(path, &st) == nil { // what vanishes meanwhile takes nothing
			bytes += st.Blocks * 512
		}
		return nil
	})
	return bytes
}

// watched does something and tells the most that a store has taken of the disk meanwhile.
func watched(dir string, do func()) int64 {
	peak := highest(func() int64 { return allocated(dir) }, do)
	return max(peak, allocated(dir))
}

// highest does something and tells the most that a figure was meanwhile.
func highest(figure func() int64, do func()) (peak int64) {
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
				peak = max(peak, figure())
			}
		}
	})
	do()
	close(done)
	watch.Wait()
	return peak
}

func TestTheDiskNeedNotHoldALayerTwice(t *testing.T) {
	reg := newRegistry(t)
	const size = 16 << 20
	ref := reg.push(t, "big:1", imageOf(t, v1.Config{}, storedLayer(t, map[string]string{"f": incompressible(size)})))
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			dir := t.TempDir()
			s := openWith(t, dir, form(snapshotter))
			before := allocated(dir)
			var im Image
			peak := watched(dir, func() { im = mustPull(t, s, ref) }) - before
			t.Logf("peak of the disk: %.3f of the unpacked size", float64(peak)/size)
			// Files are looked at one after the other, so a byte on its way may count twice; without consuming it is 2.
			if float64(peak) < 0.9*size || float64(peak) > 1.4*size {
				t.Errorf("the disk has held up to %d bytes for %d", peak, size)
			}
			if got := readInRootfs(t, s, im, "f"); got != incompressible(size) {
				t.Error("content is wrong")
			}
			assertOnly(t, s, dir, im)
		})
	}
}

func TestADiskWithRoomForTheImageAloneIsEnough(t *testing.T) {
	reg, disk := newRegistry(t), smallDisk(t, "44m")
	s := openWith(t, disk, form(overlayfs)) // nobody mounts EROFS files of a tmpfs
	im := mustPull(t, s, reg.push(t, "big:1", imageOf(t, v1.Config{}, storedLayer(t, map[string]string{"f": incompressible(24 << 20)}))))
	if got := readInRootfs(t, s, im, "f"); got != incompressible(24<<20) {
		t.Error("content is wrong")
	}
}

func TestAKillWhileALayerIsConsumedCostsThatLayer(t *testing.T) {
	dir, reg := t.TempDir(), newRegistry(t)
	const size = 6 << 20
	im := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"below": "x"}), layerOf(t, map[string]string{"f": incompressible(size)}))
	ref := reg.push(t, "big:1", im)
	// The layer below does not come: the other one is unpacked, its compressed form gone, and cannot be committed.
	heal := make(chan struct{})
	reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layerPath(t, im, 0)) {
			select {
			case <-r.Context().Done():
			case <-heal:
			}
		}
		return false
	})
	consumed, root := make(chan struct{}), childConfig(dir).Root
	go func() {
		for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(10 * time.Millisecond) {
			ingests, _ := filepath.Glob(filepath.Join(root, contentDir, "ingest", "*"))
			unpacked, _ := filepath.Glob(filepath.Join(root, overlayfs, "snapshots", "*", blobName))
			var st syscall.Stat_t
			if len(ingests) == 1 && len(unpacked) > 0 && syscall.Stat(unpacked[0], &st) == nil && st.Size > size { // the one is the layer's below
				close(consumed)
				return
			}
		}
	}()
	killInPull(t, dir, ref, consumed)
	close(heal)
	s := openWith(t, dir, form(erofsForm))
	if len(s.List()) > 0 {
		t.Fatal("half an image is listed")
	}
	if got := readInRootfs(t, s, mustPull(t, s, ref), "f"); got != incompressible(size) {
		t.Error("content is wrong")
	}
}

func TestTheSameLayerTwiceInAnImageIsFetchedOnce(t *testing.T) {
	reg := newRegistry(t)
	big := layerOf(t, map[string]string{"f": incompressible(2 << 20)})
	ref := reg.push(t, "twice:1", imageOf(t, v1.Config{}, big, layerOf(t, map[string]string{"g": "1"}), big))
	s := openStore(t, t.TempDir())
	reg.blobs.Store(0)
	im := mustPull(t, s, ref)
	if got := reg.blobs.Load(); got != 3 {
		t.Errorf("%d blobs were fetched, want the configuration and two layers", got)
	}
	if got := readInRootfs(t, s, im, "f"); got != incompressible(2<<20) {
		t.Error("content is wrong")
	}
}

func digestOf(t *testing.T, im v1.Image, i int) digest.Digest {
	t.Helper()
	layers, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[i].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(d.String())
}

// TestAKeptLayerIsNotConsumedForAnotherImage: who kept compressed layers once can still export them.
func TestAKeptLayerIsNotConsumedForAnotherImage(t *testing.T) {
	dir, reg := t.TempDir(), newRegistry(t)
	s := openWith(t, dir, func(c *Config) { c.KeepLayers = true })
	shared := storedLayer(t, map[string]string{"f": incompressible(2 * consumeFrom)})
	kept := mustPull(t, s, reg.push(t, "kept:1", imageOf(t, v1.Config{}, shared)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	other := mustPull(t, s, reg.push(t, "other:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"g": "x"}), shared)))
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(exported(t, s, kept.ID)) < 2*consumeFrom {
		t.Error("the layer is not exported")
	}
	if r, found := check(t, s, false); r.Damaged != 0 {
		t.Errorf("damage: %v", found)
	}
	assertOnly(t, s, dir, kept, other)
}

// TestABlobThatWasBeingDeletedIsFetchedAnew: a crash came between the books and the disk, and a part of the file was given back before.
func TestABlobThatWasBeingDeletedIsFetchedAnew(t *testing.T) {
	for _, size := range []int{2 * consumeFrom, consumeFrom / 2} {
		dir, reg := t.TempDir(), newRegistry(t)
		s := openStore(t, dir)
		pushed := imageOf(t, v1.Config{}, storedLayer(t, map[string]string{"f": incompressible(size)}))
		ref, d := reg.push(t, "x:1", pushed), digestOf(t, pushed, 0)
		holes := make([]byte, len(reg.blob(t, "/v2/x/blobs/"+d.String())))
		file := filepath.Join(dir, "image", contentDir, "blobs/sha256", d.Encoded())
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, holes, 0o600)); err != nil {
			t.Fatal(err)
		}
		im := mustPull(t, s, ref)
		if readInRootfs(t, s, im, "f") != incompressible(size) {
			t.Error("content is wrong")
		}
		assertOnly(t, s, dir, im)
	}
}
