// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"log"
)

// bigImage has layers of files that are half compressible.
func bigImage(b *testing.B, layers, files, size int) v1.Image {
	b.Helper()
	var all []v1.Layer
	noise := incompressible(size)
	for l := range layers {
		var raw bytes.Buffer
		w := tar.NewWriter(&raw)
		for f := range files {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("l%d/d%d/f%d", l, f/100, f), Mode: 0o644, Size: int64(size)}
			data := append([]byte(fmt.Sprintf("%8d%8d", l, f) + noise)[:size/2], bytes.Repeat([]byte("x"), size-size/2)...)
			if err := w.WriteHeader(h); err != nil {
				b.Fatal(err)
			}
			w.Write(data)
		}
		w.Close()
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil }, tarball.WithCompressedCaching)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, layer)
	}
	im, err := mutate.AppendLayers(empty.Image, all...)
	if err != nil {
		b.Fatal(err)
	}
	file, err := im.ConfigFile()
	if err != nil {
		b.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	if im, err = mutate.ConfigFile(im, file); err != nil {
		b.Fatal(err)
	}
	return im
}

func benchRegistry(b *testing.B, im v1.Image) string {
	b.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	b.Cleanup(srv.Close)
	ref := strings.TrimPrefix(srv.URL, "http://") + "/big:1"
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		b.Fatal(err)
	}
	if err := remote.Write(r, im); err != nil {
		b.Fatal(err)
	}
	return ref
}

func benchOpen(b *testing.B, change func(*Config)) *Store {
	b.Helper()
	dir := b.TempDir()
	cfg := Config{Root: filepath.Join(dir, "image"), Rootfs: filepath.Join(dir, "rootfs"), MaxConcurrentDownloads: 3, StallTimeout: 10 * time.Second}
	change(&cfg)
	s, err := Open(b.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// BenchmarkPull is 4 layers with 20,000 files and 200 MB together, a new store each time.
func BenchmarkPull(b *testing.B) {
	ref := benchRegistry(b, bigImage(b, 4, 5000, 10_000))
	for _, kind := range []string{erofsForm, overlayfs, erofsForm + " without sync", overlayfs + " without sync"} {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s := benchOpen(b, func(c *Config) {
					c.Snapshotter, _, c.SkipSync = strings.Cut(kind, " ")
				})
				b.StartTimer()
				if _, err := s.Pull(b.Context(), PullRequest{Ref: ref}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPrepareRootfs(b *testing.B) {
	ref := benchRegistry(b, bigImage(b, 4, 1, 100))
	s := benchOpen(b, func(*Config) {})
	im, err := s.Pull(b.Context(), PullRequest{Ref: ref})
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		n++
		if _, err := s.PrepareRootfs(b.Context(), RootfsRequest{ID: fmt.Sprintf("b%d", n), ImageID: im.ID}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStatus(b *testing.B) {
	ref := benchRegistry(b, bigImage(b, 1, 1, 100))
	s := benchOpen(b, func(*Config) {})
	if _, err := s.Pull(b.Context(), PullRequest{Ref: ref}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Status(ref); err != nil {
			b.Fatal(err)
		}
	}
}
