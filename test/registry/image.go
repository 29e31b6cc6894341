// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// busyboxPath is where Debian's package busybox-static puts it.
const busyboxPath = "/usr/bin/busybox"

// Path is the search path in each image's environment.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Tree is the content of one layer, in order.
type Tree []Entry

// Entry is one member of a layer.
type Entry struct {
	tar.Header
	Data []byte
}

// Dir adds a folder.
func (t *Tree) Dir(path string, mode int64) {
	*t = append(*t, Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: path, Mode: mode}})
}

// File adds a regular file.
func (t *Tree) File(path string, data []byte, mode int64) {
	*t = append(*t, Entry{tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(data))}, data})
}

// Hardlink adds another name for a file.
func (t *Tree) Hardlink(path, to string) {
	*t = append(*t, Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: path, Linkname: to, Mode: 0o755}})
}

// Symlink adds a symbolic link.
func (t *Tree) Symlink(path, to string) {
	*t = append(*t, Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: path, Linkname: to, Mode: 0o777}})
}

func (t Tree) tar() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range t {
		e.ModTime = time.Unix(1700000000, 0)
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.Data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// Spec says how to make an image.
type Spec struct {
	Layers []Tree
	Config v1.Config
	// Docker makes a Docker schema 2 image instead of an OCI one.
	Docker bool
	// Zstd compresses the layers with zstd instead of gzip.
	Zstd bool
	// Raw stores the layers uncompressed.
	Raw bool
	// Arch is the architecture; empty means amd64.
	Arch string
}

// Build makes the image.
func Build(s Spec) (v1.Image, error) {
	media := types.OCILayer
	how := []tarball.LayerOption{tarball.WithCompressedCaching}
	switch {
	case s.Zstd:
		media = types.OCILayerZStd
		how = append(how, tarball.WithCompression(compression.ZStd))
	case s.Raw:
		media = types.OCIUncompressedLayer
	case s.Docker:
		media = types.DockerLayer
	}
	im := empty.Image
	if !s.Docker {
		im = mutate.ConfigMediaType(mutate.MediaType(im, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	for i, t := range s.Layers {
		data, err := t.tar()
		if err != nil {
			return nil, fmt.Errorf("build layer %d: %w", i, err)
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		l := static.NewLayer(data, media) // as it is; tarball would compress it whatever it is told
		if !s.Raw {
			l, err = tarball.LayerFromOpener(open, append(how, tarball.WithMediaType(media))...)
		}
		if err != nil {
			return nil, fmt.Errorf("build layer %d: %w", i, err)
		}
		if im, err = mutate.AppendLayers(im, l); err != nil {
			return nil, fmt.Errorf("append layer %d: %w", i, err)
		}
	}
	file, err := im.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	file = file.DeepCopy()
	file.Config = s.Config
	file.Config.Env = append([]string{"PATH=" + Path}, s.Config.Env...)
	file.OS, file.Architecture = "linux", "amd64"
	if s.Arch != "" {
		file.Architecture = s.Arch
	}
	file.Created = v1.Time{Time: time.Unix(1700000000, 0)}
	return mutate.ConfigFile(im, file)
}

// MustBuild is Build for a test.
func MustBuild(tb testing.TB, s Spec) v1.Image {
	tb.Helper()
	im, err := Build(s)
	if err != nil {
		tb.Fatal(err)
	}
	return im
}

// Index puts images into one OCI index, each for the platform in its config.
func Index(images ...v1.Image) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, im := range images {
		file, err := im.ConfigFile()
		if err != nil {
			return nil, fmt.Errorf("read image config: %w", err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        im,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: file.OS, Architecture: file.Architecture}},
		})
	}
	return index, nil
}

// BusyboxTree is a root file system: busybox with all its applets, users root and app (1000), /tmp.
var BusyboxTree = sync.OnceValues(func() (Tree, error) {
	bin, err := os.ReadFile(busyboxPath)
	if err != nil {
		return nil, fmt.Errorf("read busybox (Debian's package busybox-static): %w", err)
	}
	applets, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox applets: %w", err)
	}
	var t Tree
	for _, d := range []string{"bin/", "dev/", "etc/", "home/", "proc/", "root/", "run/", "sys/", "var/"} {
		t.Dir(d, 0o755)
	}
	t.Dir("tmp/", 0o1777)
	t.File("bin/busybox", bin, 0o755)
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			t.Hardlink("bin/"+name, "bin/busybox")
		}
	}
	t.File("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home:/bin/sh\n"), 0o644)
	t.File("etc/group", []byte("root:x:0:\napp:x:1000:\nextra:x:2000:app\n"), 0o644)
	return slices.Clip(t), nil // who adds to it gets a copy
})

// Busybox is the image that most tests run: one gzip layer, OCI, command sh.
var Busybox = sync.OnceValues(func() (v1.Image, error) {
	t, err := BusyboxTree()
	if err != nil {
		return nil, err
	}
	return Build(Spec{Layers: []Tree{t}, Config: v1.Config{Cmd: []string{"sh"}}})
})

// MustBusybox is Busybox for a test.
func MustBusybox(tb testing.TB) v1.Image {
	tb.Helper()
	im, err := Busybox()
	if err != nil {
		tb.Fatal(err)
	}
	return im
}

// Files is a layer of count files with size bytes each under the folder dir. Half of each file compresses
// well, half not at all: so real layers behave.
func Files(dir string, count, size int, seed uint64) Tree {
	random := rand.New(rand.NewPCG(seed, 7))
	var t Tree
	t.Dir(dir+"/", 0o755)
	for i := range count {
		sub := fmt.Sprintf("%s/d%03d", dir, i/100)
		if i%100 == 0 {
			t.Dir(sub+"/", 0o755)
		}
		data := make([]byte, size)
		for j := 0; j < size/2; j++ {
			data[j] = byte(random.Uint32())
		}
		t.File(fmt.Sprintf("%s/f%05d", sub, i), data, 0o644)
	}
	return t
}
