// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/berth-run/berth/internal/linux/userns"
)

// layered has two layers: "both" is in both, each has a file of its own; those of the upper one are user 7's.
func layered(t *testing.T) Overlay {
	t.Helper()
	root := t.TempDir()
	for layer, owner := range map[string]int{"a": 7, "b": 0} {
		if err := os.Mkdir(filepath.Join(root, layer), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"both", "only-" + layer} {
			path := filepath.Join(root, layer, name)
			if err := os.WriteFile(path, []byte(layer), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(path, owner, owner); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Mkdir(filepath.Join(root, "l"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, layer := range []string{"a", "b"} {
		if err := os.Symlink("../"+layer, filepath.Join(root, "l", layer)); err != nil {
			t.Fatal(err)
		}
	}
	return Overlay{Root: root, Dir: "l", Layers: []string{"a", "b"}}
}

func place(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "at")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := DetachOverlay(dir); err != nil {
			t.Error(err)
		}
		if points, err := Below(filepath.Dir(dir)); err != nil || len(points) != 0 {
			t.Errorf("left mounted: %q, %v", points, err)
		}
	})
	return dir
}

func owner(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

func TestAnOverlayWithoutAnUpperFolderIsReadOnly(t *testing.T) {
	at := place(t)
	if err := layered(t).On(at); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(at + "/both"); err != nil || string(data) != "a" {
		t.Errorf("%q, %v", data, err)
	}
	if err := os.WriteFile(at+"/new", nil, 0o600); err == nil {
		t.Error("it can be written to")
	}
}

// Both ways to mount mapped layers: as this kernel likes it, and as older ones do.
func TestLayersAreMappedIntoAUserNamespace(t *testing.T) {
	ns, err := userns.Open(userns.Mapping{UIDs: userns.Range{Host: 65536, Size: 4096}, GIDs: userns.Range{Host: 65536, Size: 4096}})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for _, attach := range []bool{false, true} {
		o, at, writable := layered(t), place(t), t.TempDir()
		o.UserNS, o.Upper, o.Work = fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), filepath.Join(writable, "u"), filepath.Join(writable, "w")
		o.Options = append(o.Options, "volatile")
		dirs := []string{o.Upper, o.Work}
		if attach { // what a kernel before 6.15 leaves when it refuses layers that are mounted nowhere
			dirs = append(dirs, o.Work+"/work/incompat/volatile")
		}
		for _, dir := range dirs {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(o.Upper, 65536, 65536); err != nil {
			t.Fatal(err)
		}
		if err := o.on(at, attach); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]int{"": 65536, "both": 65536 + 7, "only-b": 65536} {
			if got := owner(t, filepath.Join(at, path)); got != want {
				t.Errorf("attach %v: %q belongs to %d, want %d", attach, path, got, want)
			}
		}
		if err := os.Chmod(at+"/only-b", 0o600); err != nil { // copied up
			t.Error(err)
		}
		if got := owner(t, o.Upper+"/only-b"); got != 65536 {
			t.Errorf("attach %v: the copy belongs to %d", attach, got)
		}
		if points, err := Below(filepath.Dir(at)); err != nil || !slices.Equal(points, []string{at}) {
			t.Errorf("attach %v: mounts %q, %v", attach, points, err)
		}
	}
}

func TestWhatACrashLeftOfAMappedMountIsRemoved(t *testing.T) {
	at := place(t)
	if err := os.Mkdir(scratch(at), 0o700); err != nil {
		t.Fatal(err)
	}
	mustMount(t, Mount{Type: "tmpfs", Source: "tmpfs"}, scratch(at))
	if err := DetachOverlay(at); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(scratch(at)); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// A page of options has no room for 127 layers in a deep folder by their paths.
func TestManyLayersInADeepFolder(t *testing.T) {
	o, at := Overlay{Root: t.TempDir()}, place(t)
	for len(o.Root) < 200 {
		o.Root = filepath.Join(o.Root, "deep-down-below")
	}
	for i := range 127 {
		o.Layers = append(o.Layers, fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Join(o.Root, o.Layers[i]), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.On(at); err != nil {
		t.Error(err)
	}
	o.Layers = slices.Repeat(o.Layers, 3)
	if err := o.On(at); err == nil {
		t.Error("mounted more layers than a page of options names")
	}
}
