// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/test/registry"
)

const modelType = "application/vnd.example.model.v1"

func (s *registryServer) pushArtifact(t *testing.T, ref string, a registry.Artifact) string {
	t.Helper()
	full, _ := registry.MustPushArtifact(t, s.host(), ref, a)
	return full
}

// volumeOf mounts an image as a volume of a container and reads what is in it.
func volumeOf(t *testing.T, s *Store, id, artifact string) string {
	t.Helper()
	base := newRegistry(t)
	runs := mustPull(t, s, base.push(t, "runs:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"bin": "x"}))))
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: runs.ID, VolumeIDs: []string{artifact}})
	if err != nil {
		t.Fatal(err)
	}
	return at(t, r.Volumes[0])
}

func TestArtifactsAreVolumesOfFiles(t *testing.T) {
	weights := []byte(incompressible(3 << 20))
	for _, snapshotter := range []string{erofsForm, overlayfs} {
		t.Run(snapshotter, func(t *testing.T) {
			reg := newRegistry(t)
			files := []registry.ArtifactFile{{Name: "model.gguf", Data: weights}, {Name: "conf/a.json", Data: []byte("{}\n")}, {Name: "./conf/sub/b", Data: []byte("b")},
				{Name: "README", MediaType: ocispec.MediaTypeImageLayer, Data: []byte("no archive")}, {Name: "empty", Data: nil}, {Data: []byte("unnamed")}}
			ref := reg.pushArtifact(t, "model:1", registry.Artifact{Type: modelType, Files: files})
			other := reg.pushArtifact(t, "model:2", registry.Artifact{Type: modelType, Files: files[1:2]})
			dir := t.TempDir()
			s := openWith(t, dir, form(snapshotter))
			im := mustPull(t, s, ref)
			if im.Artifact != modelType || im.Layers != 5 || !strings.HasSuffix(im.RepoDigests[0], im.ID) || im.Size < 3<<20 {
				t.Errorf("got %+v", im)
			}
			if second := mustPull(t, s, other); second.ID == im.ID { // their configurations are the same
				t.Error("two artifacts are one")
			}
			if err := s.Remove(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			if err := s.GC(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := mustPull(t, s, ref); got.ID != im.ID {
				t.Errorf("pulled again: %+v", got)
			}
			root := volumeOf(t, s, "c", im.ID)
			for _, f := range files[:5] {
				path := filepath.Join(root, f.Name)
				got, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(got, f.Data) {
					t.Errorf("%s: %d bytes, %v", f.Name, len(got), err)
				}
				if info, err := os.Lstat(path); err != nil || info.Mode() != 0o644 {
					t.Errorf("%s: %v, %v", f.Name, info, err)
				}
			}
			if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); err == nil {
				t.Error("the volume can be written to")
			}
			if info, err := os.Stat(filepath.Join(root, "conf")); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("folder: %v, %v", info, err)
			}
			if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "d", ImageID: im.ID}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "OCI artifact") {
				t.Errorf("run from an artifact: %v", err)
			}
			if info, err := s.Info(t.Context(), ref); err != nil || info["artifactType"] != modelType {
				t.Errorf("info: %v, %v", info, err)
			}
			if r, damages := check(t, s, false); r.Images != 4 || len(damages) > 0 {
				t.Errorf("check: %+v, %v", r, damages)
			}
		})
	}
}

func TestARemovedArtifactLeavesNothing(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	s := openWith(t, dir, form(erofsForm))
	ref := reg.pushArtifact(t, "m:1", registry.Artifact{Type: modelType, Files: []registry.ArtifactFile{{Name: "f", Data: []byte("data")}}})
	im := mustPull(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openWith(t, dir, form(erofsForm))
	if got, err := s.Status(ref); err != nil || got.ID != im.ID || got.Artifact != modelType {
		t.Fatalf("after a restart: %+v, %v", got, err)
	}
	if err := s.Remove(t.Context(), im.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	assertOnly(t, s, dir)
}

func TestADamagedFileOfAnArtifactIsMended(t *testing.T) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), form(erofsForm))
	ref := reg.pushArtifact(t, "m:1", registry.Artifact{Type: modelType, Files: []registry.ArtifactFile{{Name: "f", Data: []byte(incompressible(1 << 16))}}})
	im := mustPull(t, s, ref)
	flip(t, blobsOf(t, s)[0], 1<<14)
	if r, damages := check(t, s, true); r.Damaged != 1 || r.Repaired < 1 || len(damages) != 1 {
		t.Errorf("check: %+v, %v", r, damages)
	}
	if got, err := os.ReadFile(filepath.Join(volumeOf(t, s, "c", im.ID), "f")); err != nil || string(got) != incompressible(1<<16) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestAnArtifactIsExportedAndImported(t *testing.T) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), func(c *Config) { c.KeepLayers = true })
	im := mustPull(t, s, reg.pushArtifact(t, "m:1", registry.Artifact{Type: modelType, Files: []registry.ArtifactFile{{Name: "a/f", Data: []byte("data")}, {Data: []byte("unnamed")}}}))
	raw := exported(t, s, im.ID)
	other := openStore(t, t.TempDir())
	got, err := other.Import(t.Context(), bytes.NewReader(raw), "")
	if err != nil || len(got) != 1 || got[0].ID != im.ID || got[0].Artifact != modelType {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err := os.ReadFile(filepath.Join(volumeOf(t, other, "c", im.ID), "a/f")); err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestArtifactsOfNoHonestAuthor(t *testing.T) {
	many := make([]registry.ArtifactFile, maxLayers+1)
	for i := range many {
		many[i] = registry.ArtifactFile{Name: strings.Repeat("x", i+1), Data: []byte("x")}
	}
	one := func(name string) []registry.ArtifactFile {
		return []registry.ArtifactFile{{Name: name, Data: []byte("x")}}
	}
	for says, c := range map[string]struct {
		files []registry.ArtifactFile
		want  error
	}{
		"leads out":                 {one("a/../../f"), ErrCorrupt},
		"leads out of the artifact": {one(".."), ErrCorrupt},
		"not a relative path":       {one("/etc/passwd"), ErrCorrupt},
		"names a folder":            {one("a/"), ErrCorrupt},
		"\".\" names a folder":      {one("."), ErrCorrupt},
		"whiteout":                  {one("a/.wh.b"), ErrUnsupported},
		"cannot be printed":         {one("a\nb"), ErrUnsupported},
		"is too long":               {one(strings.Repeat("a/", maxFileDepth) + "f"), ErrUnsupported},
		"more than 255 bytes":       {one(strings.Repeat("a", 256)), ErrUnsupported},
		"two layers are the file":   {append(one("a"), one("./a")...), ErrCorrupt},
		"is a file and a folder":    {append(one("a/b"), one("a")...), ErrCorrupt},
		"no file to mount":          {one(""), ErrUnsupported},
		"161 files":                 {many, ErrUnsupported},
	} {
		t.Run(says, func(t *testing.T) {
			reg, dir := newRegistry(t), t.TempDir()
			s := openStore(t, dir)
			_, err := s.Pull(t.Context(), PullRequest{Ref: reg.pushArtifact(t, "m:1", registry.Artifact{Type: modelType, Files: c.files})})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), says) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if len(s.List()) > 0 {
				t.Error("it is listed")
			}
		})
	}
}

func TestWhatIsAnArtifact(t *testing.T) {
	const config, layer = ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip
	for name, c := range map[string]struct{ config, artifact, layer, want string }{
		"an image":                              {config, "", layer, ""},
		"an image with a type":                  {config, modelType, layer, ""},
		"an image's configuration around files": {config, modelType, "text/plain", modelType},
		"encrypted layers":                      {config, "", layer + "+encrypted", ""},
		"the empty configuration":               {ocispec.MediaTypeEmptyJSON, modelType, "text/plain", modelType},
		"layers that say they are archives":     {ocispec.MediaTypeEmptyJSON, modelType, layer, modelType},
		"by its configuration":                  {"application/vnd.wasm.config.v0+json", "", "application/wasm", "application/vnd.wasm.config.v0+json"},
	} {
		d := document{ArtifactType: c.artifact, Config: ocispec.Descriptor{MediaType: c.config}, Layers: []ocispec.Descriptor{{MediaType: c.layer}}}
		if got := d.artifactType(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzCheckFileName(f *testing.F) {
	for _, s := range []string{"a", "a/b", "../a", "/a", "a/./b", "a//b", ".wh.x", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := checkFileName(name)
		if err == nil && !filepath.IsLocal(got) {
			t.Errorf("%q became %q", name, got)
		}
	})
}

func TestAFileThatIsNotWhatItsDigestSaysIsRefused(t *testing.T) {
	s := &source{check: digest.FromString("data").Verifier(), diffID: "sha256:x"}
	if _, err := s.check.Write([]byte("dato")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.identify("sha256:archive"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}
