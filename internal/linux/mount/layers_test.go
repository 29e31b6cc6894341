// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/image/erofs"
	"github.com/berth-run/berth/internal/linux/userns"
)

// emptyBlob is an EROFS file with one folder, of user 7's.
func emptyBlob(t *testing.T) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root := &erofs.Inode{Mode: 0o40755, Entries: map[string]*erofs.Inode{"only-c": {Mode: 0o40755, UID: 7}}}
	if err := erofs.NewWriter(f).Close(root); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// roomFor makes a room that shows dir, if there is to be one. A kernel before 6.15 wants one.
func roomFor(t *testing.T, wanted bool, dir string) *Room {
	t.Helper()
	if !wanted {
		if err := TakesOpenLayers(t.TempDir(), t.TempDir()); err != nil {
			t.Skip("this kernel wants layers to have a place:", err)
		}
		return nil
	}
	room, err := OpenRoom(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := room.Close(); err != nil {
			t.Error(err)
		}
	})
	if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(data), " tmpfs layers ") {
		t.Errorf("the room is seen from outside: %s, %v", data, err)
	}
	return room
}

// mappedNS is the path of a user namespace whose IDs begin at 1 << 20.
func mappedNS(t *testing.T) string {
	t.Helper()
	ns, err := userns.Open(userns.Mapping{UIDs: userns.Range{Host: 1 << 20, Size: 65536}, GIDs: userns.Range{Host: 1 << 20, Size: 65536}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
}

// TestLayersThatAreOpenMounts lays an EROFS file over folders, in and out of a user namespace, as kernels since 6.15 and as older ones want it.
func TestLayersThatAreOpenMounts(t *testing.T) {
	for _, inRoom := range []bool{false, true} {
		for shift, path := range map[int]string{0: "", 1 << 20: mappedNS(t)} {
			t.Run(fmt.Sprintf("in a room %t shifted %d", inRoom, shift), func(t *testing.T) {
				writable := t.TempDir()
				room := roomFor(t, inRoom, writable)
				blob, err := ErofsLayer(emptyBlob(t), room)
				if err != nil {
					t.Fatal(err)
				}
				folders, o := layered(t), Overlay{Mounts: []*Layer{blob}, Room: room, UserNS: path, Options: []string{"index=off", "volatile"}}
				for _, name := range folders.Layers {
					f, err := os.Open(filepath.Join(folders.Root, name))
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
					o.Mounts = append(o.Mounts, FolderLayer(f))
				}
				o.Upper, o.Work = filepath.Join(writable, "upper"), filepath.Join(writable, "work")
				for _, dir := range []string{o.Upper, o.Work} {
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				at := place(t)
				if err := o.On(at); err != nil {
					t.Fatal(err)
				}
				if err := blob.Close(); err != nil { // the overlay keeps its layers
					t.Fatal(err)
				}
				if data, err := os.ReadFile(at + "/both"); err != nil || string(data) != "a" {
					t.Errorf("%q, %v", data, err)
				}
				for name, want := range map[string]int{"only-a": 7, "only-b": 0, "only-c": 7} {
					if got := owner(t, filepath.Join(at, name)); got != shift+want {
						t.Errorf("%s belongs to %d, want %d", name, got, shift+want)
					}
				}
				if err := os.WriteFile(at+"/only-c/new", nil, 0o600); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestWhatIsNoEROFSIsNotMounted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := ErofsLayer(file, nil); err == nil {
		m.Close()
		t.Error("zeros are mounted")
	}
}
