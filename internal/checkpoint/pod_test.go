// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func testKey(t *testing.T) Key {
	t.Helper()
	key, err := LoadKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// sealed is a checkpoint of a pod with two containers.
func sealed(t *testing.T, key Key) (folder string) {
	t.Helper()
	folder = t.TempDir()
	for name, text := range map[string]string{"0/checkpoint/core-1.img": "core", "0/checkpoint/pages-1.img": strings.Repeat("page", 1000), "0/rootfs-diff.tar": "layer",
		"0/dump.log": "log", "1/checkpoint/core-1.img": "other", "1/rootfs-diff.tar": "", "shm.tar": "shm"} {
		write(t, filepath.Join(folder, name), text)
	}
	if err := os.Symlink("/etc", filepath.Join(folder, "0/checkpoint/parent")); err != nil {
		t.Fatal(err)
	}
	p := Pod{Made: time.Unix(1000, 0).UTC(), Handler: "runc", Config: []byte(`{"a":"b"}`), SharedMemory: true,
		Containers: []Container{{Name: "x", Config: []byte(`{}`), ImageID: "sha256:1"}, {Name: "y", Config: []byte(`{}`), ImageID: "sha256:2"}}}
	if err := p.Seal(t.Context(), folder, key); err != nil {
		t.Fatal(err)
	}
	return folder
}

func TestASealedPodIsReadBack(t *testing.T) {
	key := testKey(t)
	folder := sealed(t, key)
	p, err := OpenPod(folder, key)
	if err != nil {
		t.Fatal(err)
	}
	if p.Handler != "runc" || string(p.Config) != `{"a":"b"}` || !p.Made.Equal(time.Unix(1000, 0)) || len(p.Containers) != 2 || p.Containers[1].Name != "y" || !p.SharedMemory {
		t.Errorf("got %+v", p)
	}
	to := t.TempDir()
	if err := p.CopyImages(t.Context(), 0, to); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(to, "checkpoint"))
	if err != nil || len(entries) != 2 || entries[0].Name() != "core-1.img" || entries[1].Name() != "pages-1.img" {
		t.Errorf("copied %v, %v", entries, err)
	}
	if data, err := os.ReadFile(filepath.Join(to, "checkpoint/pages-1.img")); err != nil || string(data) != strings.Repeat("page", 1000) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	for name, want := range map[string]string{"0/rootfs-diff.tar": "layer", "1/rootfs-diff.tar": "", SharedMemory: "shm"} {
		f, err := p.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.Open(t.Context(), "0/dump.log"); !errors.Is(err, ErrForeign) {
		t.Errorf("a file that is not sealed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.CopyImages(ctx, 1, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestNothingOfAChangedFileIsTaken: its reader never sees its end.
func TestNothingOfAChangedFileIsTaken(t *testing.T) {
	key := testKey(t)
	for name, spoil := range map[string]func(at string) error{
		"another":     func(at string) error { return os.WriteFile(at, []byte("cOre"), 0o600) },
		"longer":      func(at string) error { return os.WriteFile(at, []byte("core and more"), 0o600) },
		"shorter":     func(at string) error { return os.Truncate(at, 2) },
		"gone":        os.Remove,
		"a link":      func(at string) error { return errors.Join(os.Remove(at), os.Symlink("/proc/self/status", at)) },
		"a link away": func(at string) error { return errors.Join(os.Remove(at), os.Symlink("../../../../../etc/passwd", at)) },
		"a folder":    func(at string) error { return errors.Join(os.Remove(at), os.Mkdir(at, 0o700)) },
	} {
		folder := sealed(t, key)
		p, err := OpenPod(folder, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(filepath.Join(folder, "0/checkpoint/core-1.img")); err != nil {
			t.Fatal(err)
		}
		if err := p.CopyImages(t.Context(), 0, t.TempDir()); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyWhatIsSealedIsOpened(t *testing.T) {
	key := testKey(t)
	for name, x := range map[string]struct {
		spoil func(folder string) error
		want  error
	}{
		"an empty folder":   {func(folder string) error { return DiscardPod(folder) }, ErrNone},
		"no seal":           {func(folder string) error { return os.Remove(filepath.Join(folder, sealName)) }, ErrForeign},
		"a short seal":      {func(folder string) error { return os.Truncate(filepath.Join(folder, sealName), 31) }, ErrForeign},
		"a long seal":       {func(folder string) error { return os.Truncate(filepath.Join(folder, sealName), 33) }, ErrForeign},
		"a longer manifest": {func(folder string) error { return os.Truncate(filepath.Join(folder, manifestName), maxManifest+1) }, ErrForeign},
		"a manifest that is no file": {func(folder string) error {
			at := filepath.Join(folder, manifestName)
			return errors.Join(os.Remove(at), os.Mkdir(at, 0o700))
		}, ErrForeign},
	} {
		folder := sealed(t, key)
		if err := x.spoil(folder); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenPod(folder, key); !errors.Is(err, x.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenPod(sealed(t, key), testKey(t)); !errors.Is(err, ErrForeign) {
		t.Errorf("with another key: %v", err)
	}
	newer := t.TempDir()
	write(t, filepath.Join(newer, manifestName), `{"version":2}`)
	write(t, filepath.Join(newer, sealName), string(key.seal([]byte(`{"version":2}`))))
	if _, err := OpenPod(newer, key); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("of a newer Berth: %v", err)
	}
}

func TestAPodIsDiscardedAndNothingElse(t *testing.T) {
	folder := sealed(t, testKey(t))
	write(t, filepath.Join(folder, "the caller's"), "")
	write(t, filepath.Join(folder, manifestName+".new"), "cut off")
	for range 2 {
		if err := DiscardPod(folder); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 || entries[0].Name() != "the caller's" {
		t.Errorf("left: %v, %v", entries, err)
	}
	if err := DiscardPod(folder + "/no"); err != nil {
		t.Error(err)
	}
}

func TestANodeHasOneKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	keys := make([]Key, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = LoadKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if len(k.secret) != keySize || !slices.Equal(k.secret, keys[0].secret) {
			t.Errorf("keys %x and %x", k.secret, keys[0].secret)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	for _, size := range []int64{31, 33} {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKey(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("a key of %d bytes: %v", size, err)
		}
	}
}

func TestSharedIPCObjectsAreForgotten(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"ipcns-shm-11.img", "ipcns-msg-11.img", "ipcns-sem-11.img", "ipcns-var-11.img", "utsns-12.img"} {
		write(t, filepath.Join(folder, "checkpoint", name), "")
	}
	if err := ForgetIPC(folder); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Join(folder, "checkpoint")); err != nil || len(entries) != 2 || entries[0].Name() != "ipcns-var-11.img" {
		t.Errorf("left: %v, %v", entries, err)
	}
}
