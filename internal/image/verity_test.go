// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-run/berth/internal/linux/fsys"
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
	assertGuarded(t, s, 3)
}

// assertGuarded: the kernel guards each layer as is recorded, and lets nobody write to it.
func assertGuarded(t *testing.T, s *Store, layers int) {
	t.Helper()
	blobs := blobsOf(t, s)
	if len(blobs) != layers {
		t.Errorf("%d blobs, want %d", len(blobs), layers)
	}
	for _, blob := range blobs {
		is, err := verity.Measure(blob)
		recorded, rerr := os.ReadFile(blob + veritySuffix)
		if err := errors.Join(err, rerr); err != nil || is != string(recorded) {
			t.Errorf("it measures %s, recorded is %s, %v", is, recorded, err)
		}
		if f, err := os.OpenFile(blob, os.O_RDWR, 0); err == nil {
			f.Close()
			t.Error("a layer can be written to")
		}
	}
}

// TestWhatIsMendedIsGuardedAgain has the lowest of three layers be lost or replaced in each way, and a container that runs on it meanwhile.
func TestWhatIsMendedIsGuardedAgain(t *testing.T) {
	for name, damage := range map[string]func(blob string) error{
		"lost":                 os.Remove,
		"lost with its record": func(blob string) error { return errors.Join(os.Remove(blob), os.Remove(blob+veritySuffix)) },
		"lost with its folder": func(blob string) error { return os.RemoveAll(filepath.Dir(blob)) },
		"cut and not guarded": func(blob string) error {
			return errors.Join(os.Remove(blob), os.WriteFile(blob, make([]byte, 100), 0o600))
		},
		"another that is guarded": func(blob string) error {
			return errors.Join(os.Remove(blob), os.WriteFile(blob, make([]byte, 8192), 0o600), verity.Enable(blob))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, reg := withVerity(t), newRegistry(t)
			cfg := filepath.Join(dir, "store")
			s := openWith(t, cfg, guarded)
			ref := reg.push(t, "app:1", threeLayers(t))
			before := rootOf(t, s, mustPull(t, s, ref), "before", nil)
			if err := damage(blobsOf(t, s)[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Check(t.Context(), CheckRequest{}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Status(ref); !errors.Is(err, ErrNotFound) {
				t.Errorf("it is still listed: %v", err)
			}
			im := mustPull(t, s, ref)
			wantThree(t, rootOf(t, s, im, "after", nil))
			wantThree(t, before)
			assertGuarded(t, s, 3)
			if r, err := s.Check(t.Context(), CheckRequest{}); err != nil || r.Damaged != 0 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// TestABlockThatRotsUnderAGuardedLayerIsNeverRead changes a byte on the disk, below the file system.
func TestABlockThatRotsUnderAGuardedLayerIsNeverRead(t *testing.T) {
	dir, reg, content := withVerity(t), newRegistry(t), incompressible(1<<16)
	s := openWith(t, filepath.Join(dir, "store"), guarded)
	ref := reg.push(t, "app:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": content})))
	im := mustPull(t, s, ref)
	if readInRootfs(t, s, im, "f") != content {
		t.Fatal("content is wrong")
	}
	syscall.Sync()
	disk, err := os.OpenFile(filepath.Join(filepath.Dir(dir), "ext4"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	raw, err := io.ReadAll(disk)
	if err != nil {
		t.Fatal(err)
	}
	place := bytes.Index(raw, []byte(content))
	if place < 0 {
		t.Fatal("the file is nowhere on the disk")
	}
	if _, err := disk.WriteAt([]byte{^raw[place+5000]}, int64(place)+5000); err != nil {
		t.Fatal(err)
	}
	blob, err := os.Open(blobsOf(t, s)[0])
	if err == nil {
		err = errors.Join(fsys.DropCache(blob), blob.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: "rotten", ImageID: im.ID})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(at(t, r.Root), "f")); !errors.Is(err, syscall.EIO) {
		t.Errorf("%d bytes are read, %v", len(got), err)
	}
	if r, err := s.Check(t.Context(), CheckRequest{}); err != nil || r.Damaged != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := s.Status(ref); !errors.Is(err, ErrNotFound) {
		t.Errorf("it is still listed: %v", err)
	}
	if readInRootfs(t, s, mustPull(t, s, ref), "f") != content {
		t.Error("content is wrong after another pull")
	}
	assertGuarded(t, s, 1)
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
