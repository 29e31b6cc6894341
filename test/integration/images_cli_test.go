// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// cli runs the command line and returns its exit code with all that it printed.
func cli(k *kubelet.Kubelet, in []byte, args ...string) (int, string) {
	k.T.Helper()
	cmd := berth(k, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	return exitCodeOf(err), string(out)
}

func wantCLI(t *testing.T, code, want int, out string, parts ...string) {
	t.Helper()
	if code != want {
		t.Errorf("exit code %d, want %d:\n%s", code, want, out)
	}
	for _, p := range parts {
		if !strings.Contains(out, p) {
			t.Errorf("output lacks %q:\n%s", p, out)
		}
	}
}

func TestOperatorsLookAfterImages(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	reg := registry.Start(t)
	k := start(t, daemon.Spec{})
	ref, _ := reg.MustPush(t, "tended:1", small(t, "tended", registry.Spec{Layers: []registry.Tree{registry.Files("data", 50, 4000, 3)}}))
	code, out := cli(k, nil, "images", "pull", ref)
	wantCLI(t, code, 0, out, "pulled "+ref)
	code, out = cli(k, nil, "images", "fsck")
	wantCLI(t, code, 0, out, " 0 damaged")

	code, out = cli(k, nil, "images", "tag", ref, "example.com/mine:2")
	wantCLI(t, code, 0, out, "example.com/mine:2")
	if imageStatus(k, "example.com/mine:2") == nil {
		t.Error("the tag is not known")
	}

	// Compressed layers go with the first collection after the pull.
	kubelet.Eventually(t, 10*time.Second, func() string {
		file := filepath.Join(t.TempDir(), "x.tar")
		if code, out := cli(k, nil, "images", "export", "-o", file, ref); code != 1 || !strings.Contains(out, "images.keep_layers = true") {
			return fmt.Sprintf("an export that says which setting keeps layers: code %d, %s", code, out)
		}
		return ""
	})
	code, out = cli(k, nil, "images", "tag", "nobody", "x")
	wantCLI(t, code, 1, out, "not found")

	rot(t, k)
	code, out = cli(k, nil, "images", "fsck")
	wantCLI(t, code, 1, out, "damaged layer sha256:", ref, "--repair")
	if imageStatus(k, ref) != nil {
		t.Error("a damaged image is listed")
	}
	code, out = cli(k, nil, "images", "fsck", "--repair")
	wantCLI(t, code, 0, out, "repaired "+ref)
	code, out = cli(k, nil, "images", "fsck", "-q")
	wantCLI(t, code, 0, out)

	code, out = cli(k, nil, "images", "prune", "--dry-run")
	wantCLI(t, code, 0, out, "would remove ", ref)
	code, out = cli(k, nil, "images", "prune")
	wantCLI(t, code, 0, out, "removed ", "freed ")
	if imageStatus(k, ref) != nil {
		t.Error("it is still there")
	}
}

// rot changes a bit of a layer's file.
func rot(t *testing.T, k *kubelet.Kubelet) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(k.D.Root, "image/overlayfs/snapshots/*/layer.erofs"))
	if err != nil || len(blobs) == 0 {
		t.Fatalf("blobs %v, %v", blobs, err)
	}
	f, err := os.OpenFile(blobs[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 4096); err != nil {
		t.Fatal(err)
	}
	b[0]++
	if _, err := f.WriteAt(b, 4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestAnImageIsExportedAndImported(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	reg := registry.Start(t)
	k := start(t, daemon.Spec{Config: "\n[images]\nkeep_layers = true\n"})
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	ref, _ := reg.MustPush(t, "carried:1", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{tree}, Config: v1.Config{Cmd: []string{"echo", "carried"}}}))
	id := k.Pull(ref)
	file := filepath.Join(t.TempDir(), "image.tar")
	code, out := cli(k, nil, "images", "export", "-o", file, ref)
	wantCLI(t, code, 0, out)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	removeImage(k, ref)
	code, out = cli(k, raw, "images", "import")
	wantCLI(t, code, 0, out, "imported "+ref)
	if im := imageStatus(k, ref); im == nil || im.Id != id {
		t.Fatalf("imported as %v, want %s", im, id)
	}
	p := k.RunPod(k.PodConfig("carried"))
	spec := k.ContainerConfig("main")
	spec.Image.Image = id
	c := p.Start(spec)
	c.WaitExit()
	equal(t, "what it prints", c.Output("stdout"), "carried\n")
	p.Remove()
	code, out = cli(k, raw[:len(raw)/2], "images", "import")
	wantCLI(t, code, 1, out, "corrupt")
}
