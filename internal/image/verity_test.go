// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/verity"
)

func guarded(c *Config) { c.Snapshotter, c.FSVerity = erofsForm, true }

// withVerity is a folder where files can be guarded. Where the kernel has no fs-verity the test is skipped.
func withVerity(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("/sys/fs/ext4/features/verity"); err != nil {
		t.Skip("/sys/fs/ext4/features has no verity: this kernel was built without CONFIG_FS_VERITY")
	}
	dir := t.TempDir()
	file, at := filepath.Join(dir, "ext4"), filepath.Join(dir, "at")
	for _, c := range [][]string{{"mkdir", at}, {"truncate", "-s", "256M", file}, {"mkfs.ext4", "-q", "-O", "verity", file}, {"mount", "-o", "loop", file, at}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

func TestTheKernelGuardsLayers(t *testing.T) {
	dir, reg := withVerity(t), newRegistry(t)
	if err := probeEROFS(dir); err != nil {
		t.Skipf("this kernel makes no root file system of EROFS files: %v", err)
	}
	s := openWith(t, filepath.Join(dir, "store"), guarded)
	ref := reg.push(t, "app:1", threeLayers(t))
	im := mustPull(t, s, ref)
	wantThree(t, rootOf(t, s, im, "c", nil))
	if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	blob := blobsOf(t, s)[0]
	if f, err := os.OpenFile(blob, os.O_RDWR, 0); err == nil {
		f.Close()
		t.Error("a layer can be written to")
	}
	// Another file in its place, with the same content but not guarded.
	raw, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(blob), os.WriteFile(blob, raw, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "d", ImageID: im.ID}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "fs-verity") {
		t.Errorf("got %v", err)
	}
	wantThree(t, rootOf(t, s, mustPull(t, s, ref), "e", nil))
	for _, blob := range blobsOf(t, s) {
		if _, err := verity.Measure(blob); err != nil {
			t.Error(err)
		}
	}
}

func TestAGuardedBlobIsKnownByItsDigest(t *testing.T) {
	folder := filepath.Join(withVerity(t), "1", "fs")
	blob := blobOf(folder)
	if err := errors.Join(os.MkdirAll(folder, 0o700), os.WriteFile(blob, make([]byte, 10000), 0o600)); err != nil {
		t.Fatal(err)
	}
	s := &Store{cfg: Config{FSVerity: true}}
	if err := errors.Join(s.guardBlob(blob), checkGuard(folder)); err != nil {
		t.Fatal(err)
	}
	for name, guard := range map[string]func(string) error{"another that is guarded, too": verity.Enable, "one that is not": func(string) error { return nil }} {
		if err := errors.Join(os.Remove(blob), os.WriteFile(blob, make([]byte, 10001), 0o600), guard(blob)); err != nil {
			t.Fatal(err)
		}
		if err := checkGuard(folder); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestALayerThatIsGuardedNoMoreIsMended(t *testing.T) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), form(erofsForm))
	ref := reg.push(t, "app:1", threeLayers(t))
	im := mustPull(t, s, ref)
	if err := os.WriteFile(blobsOf(t, s)[0]+veritySuffix, []byte("sha256:0"), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "d", ImageID: im.ID}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "fs-verity") {
		t.Errorf("got %v", err)
	}
	wantThree(t, rootOf(t, s, mustPull(t, s, ref), "e", nil))
}

func TestWithoutFSVerityTheStoreSaysSo(t *testing.T) {
	for says, change := range map[string]func(*Config){
		"EROFS": func(c *Config) { c.Snapshotter, c.FSVerity = overlayfs, true }, "CONFIG_FS_VERITY": guarded,
	} {
		dir := t.TempDir()
		if verity.Probe(dir) == nil && says != "EROFS" {
			continue // it can
		}
		cfg := Config{Root: filepath.Join(dir, "image"), Rootfs: filepath.Join(dir, "rootfs"), MaxConcurrentDownloads: 1, StallTimeout: time.Second}
		change(&cfg)
		if _, err := Open(context.Background(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}
