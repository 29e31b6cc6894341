// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	copyfs "github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/sysx"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// describe lists a tree: kinds, modes, owners, contents, links.
func describe(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		name, _ := filepath.Rel(root, path)
		fmt.Fprintf(&all, "%s %v %d:%d %d", name, info.Mode(), st.Uid, st.Gid, st.Rdev)
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			capability, _ := sysx.LGetxattr(path, "security.capability")
			fmt.Fprintf(&all, " %q %x", content, capability)
			if first, ok := inodes[st.Ino]; ok {
				fmt.Fprintf(&all, " = %s", first)
			} else {
				inodes[st.Ino] = name
			}
		case info.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			fmt.Fprintf(&all, " -> %s", to)
		}
		all.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// diffed prepares a container, lets use change its root file system, and returns what it was, what it is and the difference.
func diffed(t *testing.T, s *Store, im Image, use func(root string)) (before, after string, diff []byte) {
	t.Helper()
	id := fmt.Sprintf("d%d", containers.Add(1))
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: im.ID})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := r.Root.On(root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(root, 0) })
	before = t.TempDir()
	if err := copyfs.CopyDir(before, root); err != nil {
		t.Fatal(err)
	}
	use(root)
	var b bytes.Buffer
	if err := s.DiffRootfs(t.Context(), id, nil, &b); err != nil {
		t.Fatal(err)
	}
	return before, describe(t, root), b.Bytes()
}

func TestTheDifferenceOfARootfsAppliedToItsImageIsTheRootfs(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "diff:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"etc/keep": "k", "etc/change": "old", "etc/gone": "g",
		"var/dir/a": "a", "var/dir/b": "b", "var/replaced/x": "x", "usr/bin/tool": "t"})))
	s := openStore(t, t.TempDir())
	im, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	before, after, diff := diffed(t, s, im, func(root string) {
		at := func(name string) string { return filepath.Join(root, name) }
		for _, err := range []error{
			os.WriteFile(at("etc/change"), []byte("new and longer"), 0o600),
			os.Remove(at("etc/gone")),
			os.RemoveAll(at("var/dir")),
			os.RemoveAll(at("var/replaced")), os.Mkdir(at("var/replaced"), 0o711), os.WriteFile(at("var/replaced/y"), []byte("y"), 0o644), // an opaque folder
			os.Chown(at("usr/bin/tool"), 7, 8), os.Chmod(at("usr/bin/tool"), 0o4755),
			os.MkdirAll(at("new/deep/er"), 0o750), os.WriteFile(at("new/deep/er/f"), bytes.Repeat([]byte("z"), 100000), 0o640),
			os.Symlink("/etc/shadow", at("new/link")), os.Link(at("new/deep/er/f"), at("new/hard")),
			syscall.Mkfifo(at("new/fifo"), 0o600), syscall.Mknod(at("new/null"), syscall.S_IFCHR|0o666, 1<<8|3),
			sysx.LSetxattr(at("new/hard"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
			sysx.LSetxattr(at("new/deep"), "user.overlay.opaque", []byte("y"), 0), // the container's own, and nothing to overlayfs
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	if _, err := archive.Apply(t.Context(), before, bytes.NewReader(diff)); err != nil {
		t.Fatal(err)
	}
	if got := describe(t, before); got != after {
		t.Errorf("image and difference:\n%s\nroot file system:\n%s", got, after)
	}
}

func TestNoDifferenceIsAnEmptyLayer(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "diff:2", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "f"})))
	s := openStore(t, t.TempDir())
	im, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, diff := diffed(t, s, im, func(string) {}); len(bytes.Trim(diff, "\x00")) != 0 {
		t.Errorf("%d bytes", len(diff))
	}
	for _, id := range []string{"nobody", "../x"} {
		if err := s.DiffRootfs(t.Context(), id, nil, &bytes.Buffer{}); !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalidReference) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// TestAFolderThatLivesElsewhereInTheImageIsNotPassedOver: with redirect_dir overlayfs notes a renamed folder in an attribute, and its files are in no upper folder.
func TestAFolderThatLivesElsewhereInTheImageIsNotPassedOver(t *testing.T) {
	s := openStore(t, t.TempDir())
	upper := s.WritableFolders("r1")[0]
	if err := os.MkdirAll(filepath.Join(upper, "moved"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := sysx.LSetxattr(filepath.Join(upper, "moved"), "trusted.overlay.redirect", []byte("/old"), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.DiffRootfs(t.Context(), "r1", nil, &bytes.Buffer{}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "/moved") {
		t.Error(err)
	}
}

// TestChangesAreAppliedToAnotherContainer: what one has changed, another of the same image gets.
func TestChangesAreAppliedToAnotherContainer(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, t.TempDir())
	im := mustPull(t, s, reg.push(t, "changed:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"keep": "a", "gone": "b", "dir/old": "c", "more/x": "d"}))))
	_, after, diff := diffed(t, s, im, func(root string) {
		at := func(name string) string { return filepath.Join(root, name) }
		err := errors.Join(os.Remove(at("gone")), os.RemoveAll(at("dir")), os.Mkdir(at("dir"), 0o711), os.WriteFile(at("dir/new"), []byte("n"), 0o4755), os.Link(at("dir/new"), at("hard")),
			os.Symlink("/etc/passwd", at("link")), os.Chown(at("keep"), 5, 6), syscall.Mkfifo(at("more/fifo"), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	})
	id := fmt.Sprintf("d%d", containers.Add(1))
	r, err := s.PrepareRootfs(t.Context(), RootfsRequest{ID: id, ImageID: im.ID})
	if err == nil {
		err = s.ApplyRootfs(t.Context(), id, nil, bytes.NewReader(diff))
	}
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := errors.Join(r.Root.On(root), r.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(root, 0) })
	if got, want := describe(t, root), after; got != want {
		t.Errorf("applied:\n%s\nwant:\n%s", got, want)
	}
	if err := s.ApplyRootfs(t.Context(), "nobody", nil, bytes.NewReader(diff)); !errors.Is(err, ErrNotFound) {
		t.Errorf("to nobody: %v", err)
	}
	if err := s.ApplyRootfs(t.Context(), id, nil, strings.NewReader(strings.Repeat("no layer", 100))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no layer: %v", err)
	}
}

// TestChangesBelongToWhomTheContainerSees, also when another user namespace gets them.
func TestChangesBelongToWhomTheContainerSees(t *testing.T) {
	upper, other := t.TempDir(), t.TempDir()
	owners := map[string]int{"root": 1 << 20, "user": 1<<20 + 1000, "the host's": 0}
	for name, id := range owners {
		at := filepath.Join(upper, name)
		if err := errors.Join(os.WriteFile(at, nil, 0o600), os.Chown(at, id, id)); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := WriteFolder(t.Context(), upper, &Owner{UID: 1 << 20, GID: 1 << 20}, &b); err != nil {
		t.Fatal(err)
	}
	if err := ReadFolder(t.Context(), other, &Owner{UID: 1 << 21, GID: 1 << 21}, &b); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{"root": 1 << 21, "user": 1<<21 + 1000, "the host's": 1<<21 + 65534} {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(other, name), &st); err != nil || st.Uid != want || st.Gid != want {
			t.Errorf("%s is %d:%d, want %d; %v", name, st.Uid, st.Gid, want, err)
		}
	}
}
