// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registry serves images from memory, to this machine only.
type registry struct {
	host   string
	server *http.Server
}

func startRegistry() (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	r := &registry{host: l.Addr().String(), server: &http.Server{Handler: ggcr.New(ggcr.Logger(quiet)), ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second}}
	go func() { _ = r.server.Serve(l) }() // it always ends with an error: that of close
	return r, nil
}

func (r *registry) close() { _ = r.server.Close() } // its connections are this process's own and the daemon's, which has ended

// push makes the image and stores it. It returns what it consists of, for people.
func (r *registry) push(ctx context.Context, repository, busybox string) (string, error) {
	image, err := makeImage(busybox)
	if err != nil {
		return "", fmt.Errorf("make image: %w", err)
	}
	ref, err := name.ParseReference(r.host + "/" + repository)
	if err != nil {
		return "", fmt.Errorf("push image: %w", err)
	}
	if err := remote.Write(ref, image, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("push image: %w", err)
	}
	manifest, err := image.Manifest()
	if err != nil {
		return "", fmt.Errorf("push image: %w", err)
	}
	var size int64
	for _, l := range manifest.Layers {
		size += l.Size
	}
	return fmt.Sprintf("%d layers, %d kB", len(manifest.Layers), size/1000), nil
}

// applets are the programs of busybox that the demo uses, and what a visitor would try.
var applets = []string{"cat", "echo", "env", "grep", "head", "hostname", "httpd", "id", "ip", "ls", "mount", "ps", "sh", "sleep", "tail", "top", "uname", "vi", "wget"}

// makeImage is an OCI image of two layers: busybox, and a page for its web server.
func makeImage(busybox string) (v1.Image, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	base := &layer{}
	for _, dir := range []string{"bin/", "dev/", "etc/", "proc/", "root/", "sys/", "var/"} {
		base.add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	base.add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	base.add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, a := range applets {
		base.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}, nil)
	}
	base.add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	base.add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\n"))
	page := &layer{}
	page.add(tar.Header{Typeflag: tar.TypeDir, Name: "www/", Mode: 0o755}, nil)
	page.add(tar.Header{Typeflag: tar.TypeReg, Name: "www/index.html", Mode: 0o644}, []byte(greeting+"\n"))

	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range []*layer{base, page} {
		made, err := l.make()
		if err != nil {
			return nil, err
		}
		if image, err = mutate.AppendLayers(image, made); err != nil {
			return nil, err
		}
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}
	return mutate.ConfigFile(image, file)
}

// layer is a layer that is being put together.
type layer struct {
	headers []tar.Header
	data    [][]byte
}

func (l *layer) add(h tar.Header, data []byte) {
	h.Size, h.ModTime = int64(len(data)), time.Unix(0, 0)
	l.headers, l.data = append(l.headers, h), append(l.data, data)
}

func (l *layer) make() (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range l.headers {
		if err := w.WriteHeader(&l.headers[i]); err != nil {
			return nil, err
		}
		if _, err := w.Write(l.data[i]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}
