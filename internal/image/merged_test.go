// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-run/berth/internal/linux/mount"
)

const spreadFiles, spreadFolders = 12000, 20

// spreadImage has the same files whatever the number of layers: each layer has a part of each folder, the worst for overlayfs.
func spreadImage(b *testing.B, layers int) v1.Image {
	b.Helper()
	im := empty.Image
	for l := range layers {
		var raw bytes.Buffer
		w := tar.NewWriter(&raw)
		for f := l; f < spreadFiles; f += layers {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/lib/d%d/f%d", f%spreadFolders, f), Mode: 0o644, Size: 16}
			if err := w.WriteHeader(h); err != nil {
				b.Fatal(err)
			}
			if _, err := w.Write(make([]byte, 16)); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		one, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil })
		if err != nil {
			b.Fatal(err)
		}
		if im, err = mutate.AppendLayers(im, one); err != nil {
			b.Fatal(err)
		}
	}
	file, err := im.ConfigFile()
	if err != nil {
		b.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	if im, err = mutate.ConfigFile(im, file); err != nil {
		b.Fatal(err)
	}
	return im
}

// BenchmarkOneLowerLayer compares an image of 60 EROFS layers with one that has all of it in a single layer, which is what a merged index would make of it: see
// ARCHITECTURE.md.
func BenchmarkOneLowerLayer(b *testing.B) {
	for _, layers := range []int{60, 1} {
		ref := benchRegistry(b, spreadImage(b, layers))
		s := benchOpen(b, func(c *Config) { c.Snapshotter = erofsForm })
		im, err := s.Pull(b.Context(), PullRequest{Ref: ref})
		if err != nil {
			b.Fatal(err)
		}
		n, at, best := 0, b.TempDir(), time.Hour
		with := func(b *testing.B, do func(root string)) {
			n++
			begin := time.Now()
			id := fmt.Sprintf("c%d", n)
			r, err := s.PrepareRootfs(b.Context(), RootfsRequest{ID: id, ImageID: im.ID})
			if err == nil {
				err = r.Root.On(at)
			}
			if err != nil {
				b.Fatal(err)
			}
			do(at)
			best = min(best, time.Since(begin)) // the machine may have other things to do
			b.ReportMetric(best.Seconds()*1000, "min-ms")
			if err := mount.DetachOverlay(at); err != nil {
				b.Fatal(err)
			}
			if err := s.RemoveRootfs(b.Context(), id); err != nil {
				b.Fatal(err)
			}
		}
		name := fmt.Sprintf("%dlayers/", layers)
		b.Run(name+"first", func(b *testing.B) { // the layers are mounted, too
			best = time.Hour
			for b.Loop() {
				with(b, func(string) {})
			}
		})
		if _, err := s.PrepareRootfs(b.Context(), RootfsRequest{ID: "holder", ImageID: im.ID}); err != nil {
			b.Fatal(err)
		}
		b.Run(name+"next", func(b *testing.B) {
			best = time.Hour
			for b.Loop() {
				with(b, func(string) {})
			}
		})
		b.Run(name+"find", func(b *testing.B) {
			best = time.Hour
			for b.Loop() {
				with(b, func(root string) {
					found := 0
					err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
						if err == nil {
							_, err = os.Lstat(path)
						}
						found++
						return err
					})
					if err != nil || found < spreadFiles {
						b.Fatal(found, err)
					}
				})
			}
		})
		b.Run(name+"absent", func(b *testing.B) { // as a dynamic linker looks for libraries: 1000 names that are nowhere
			best = time.Hour
			for b.Loop() {
				with(b, func(root string) {
					for i := range 1000 {
						if _, err := os.Lstat(fmt.Sprintf("%s/usr/lib/d%d/no%d", root, i%spreadFolders, i)); err == nil {
							b.Fatal("there")
						}
					}
				})
			}
		})
		if err := s.RemoveRootfs(b.Context(), "holder"); err != nil {
			b.Fatal(err)
		}
	}
}
