// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
)

// content is a checkpoint's, with a folder as CRIU leaves it.
func content(t *testing.T) Content {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"dump.log": "log", "stats-dump": "stats", RootfsDiff: "layer", "checkpoint/inventory.img": "inventory",
		"checkpoint/pages-1.img": "pages", "container.log": "lines"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "checkpoint/parent")); err != nil {
		t.Fatal(err)
	}
	return Content{Folder: dir, ID: "c1", Name: "main", Image: "img:1", ImageRef: "img@sha256:1", Runtime: "runc", Created: time.Unix(1000, 0), CheckpointedAt: time.Unix(2000, 0),
		Spec: []byte(`{"ociVersion":"1"}`), Status: []byte(`{"id":"c1"}`), Log: filepath.Join(dir, "container.log")}
}

func TestAnArchiveIsWhatCheckpointctlReads(t *testing.T) {
	c := content(t)
	out := t.TempDir()
	location, part := filepath.Join(out, "c.tar"), filepath.Join(out, ".part")
	for _, name := range []string{location, part} { // of an earlier time
		if err := os.WriteFile(name, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Save(t.Context(), part, location); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(out); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	f, err := os.Open(location)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	into := t.TempDir()
	var names []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		data, err := io.ReadAll(r)
		if err == nil && h.Typeflag == tar.TypeDir {
			err = os.Mkdir(filepath.Join(into, h.Name), 0o700)
		} else if err == nil {
			err = os.WriteFile(filepath.Join(into, h.Name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"config.dump", "spec.dump", "status.dump", "dump.log", "stats-dump", "container.log", "checkpoint/", "checkpoint/inventory.img", "checkpoint/pages-1.img", "rootfs-diff.tar"}
	if !slices.Equal(names, want) {
		t.Errorf("entries %v, want %v", names, want)
	}
	config, _, err := metadata.ReadContainerCheckpointConfigDump(into)
	if err != nil || config.ID != "c1" || config.Name != "main" || config.RootfsImageName != "img:1" || config.RootfsImageRef != "img@sha256:1" || config.OCIRuntime != "runc" ||
		!config.CheckpointedAt.Equal(c.CheckpointedAt) || !config.CreatedTime.Equal(c.Created) {
		t.Errorf("config %+v, %v", config, err)
	}
	if spec, _, err := metadata.ReadContainerCheckpointSpecDump(into); err != nil || spec.Version != "1" {
		t.Errorf("spec %+v, %v", spec, err)
	}
}

func TestAnArchiveThatFailsLeavesNothingAndWhatWasThere(t *testing.T) {
	for name, spoil := range map[string]func(c *Content) context.Context{
		"no difference": func(c *Content) context.Context { os.Remove(filepath.Join(c.Folder, RootfsDiff)); return t.Context() },
		"no images": func(c *Content) context.Context {
			os.RemoveAll(filepath.Join(c.Folder, "checkpoint"))
			return t.Context()
		},
		"a log that leads": func(c *Content) context.Context {
			c.Log = filepath.Join(c.Folder, "checkpoint/parent")
			return t.Context()
		},
		"a FIFO": func(c *Content) context.Context {
			c.Log = filepath.Join(c.Folder, "fifo")
			if err := syscall.Mkfifo(c.Log, 0o600); err != nil {
				t.Fatal(err)
			}
			return t.Context()
		},
		"cancelled": func(*Content) context.Context {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx
		},
	} {
		c := content(t)
		ctx := spoil(&c)
		out := t.TempDir()
		location := filepath.Join(out, "c.tar")
		if err := os.WriteFile(location, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := c.Save(ctx, filepath.Join(out, ".part"), location)
		if err == nil || !strings.HasPrefix(err.Error(), "save checkpoint: ") {
			t.Errorf("%s: %v", name, err)
		}
		entries, rerr := os.ReadDir(out)
		if data, derr := os.ReadFile(location); rerr != nil || len(entries) != 1 || string(data) != "old" || derr != nil {
			t.Errorf("%s: %v, %v; %q, %v", name, entries, rerr, data, derr)
		}
	}
}

func TestALogThatIsGoneIsNoError(t *testing.T) {
	c := content(t)
	c.Log += ".rotated"
	out := t.TempDir()
	if err := c.Save(t.Context(), filepath.Join(out, ".part"), filepath.Join(out, "c.tar")); err != nil {
		t.Error(err)
	}
}
