// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"

	"github.com/berth-run/berth/internal/linux/mount"
)

// entry is one entry of a layer's archive; data is its content.
type entry struct {
	tar.Header
	data string
}

func layerOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 123_456_789)
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.data))
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func reg(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data}
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

func link(kind byte, name, to string) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Linkname: to, Mode: 0o640, Uid: 3}}
}

func withXattrs(e entry, xattrs map[string]string) entry {
	e.PAXRecords = map[string]string{}
	for k, v := range xattrs {
		e.PAXRecords[xattrPrefix+k] = v
	}
	return e
}

// capability is a security.capability of version 2: CAP_NET_BIND_SERVICE, effective.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// fixtures are layers of all that an honest image has, and of some that no honest one has.
func fixtures() map[string][]entry {
	many := []entry{dir("many", 0o755)}
	for i := range 3000 {
		many = append(many, reg(fmt.Sprintf("many/%s%d", strings.Repeat("n", i%200), i), strings.Repeat("x", i%9000)))
	}
	deep := strings.Repeat("d/", 900)
	long := strings.Repeat("l", 255)
	return map[string][]entry{
		"empty": nil,
		"files of all sizes": {reg("zero", ""), reg("one", "1"), reg("block", strings.Repeat("b", 4096)), reg("blocks", strings.Repeat("c", 8193)),
			reg("large", strings.Repeat("0123456789", 400_000)), reg("hole", "x"+strings.Repeat("\x00", 3<<20)+"y"), reg("all zeros", strings.Repeat("\x00", 1<<20))},
		"modes and owners": {dir("sticky", 0o1777), {Header: tar.Header{Typeflag: tar.TypeReg, Name: "suid", Mode: 0o4755, Uid: 1000, Gid: 2000}},
			{Header: tar.Header{Typeflag: tar.TypeReg, Name: "sgid", Mode: 0o2711, Uid: 70000, Gid: 4_000_000_000}}, {Header: tar.Header{Typeflag: tar.TypeReg, Name: "none", Mode: 0}}},
		"times": {{Header: tar.Header{Typeflag: tar.TypeReg, Name: "old", ModTime: time.Unix(1, 1)}}, {Header: tar.Header{Typeflag: tar.TypeReg, Name: "before", ModTime: time.Unix(-5, 0)}},
			{Header: tar.Header{Typeflag: tar.TypeReg, Name: "far", ModTime: time.Unix(4_000_000_000, 7)}}},
		"devices": {{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
			{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o660, Devmajor: 259, Devminor: 70000, Gid: 6}}, {Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o622}}},
		"symbolic links": {link(tar.TypeSymlink, "soft", "../../etc/passwd"), link(tar.TypeSymlink, "dangling", "/nowhere"),
			link(tar.TypeSymlink, "long", strings.Repeat("t/", 2000)), link(tar.TypeSymlink, long, "x")},
		"through symbolic links": {dir("real/sub", 0o750), link(tar.TypeSymlink, "abs", "/real"), link(tar.TypeSymlink, "rel", "real/sub/.."),
			link(tar.TypeSymlink, "up", "../../../../real"), reg("abs/a", "a"), reg("rel/sub/b", "b"), reg("up/c", "c"), reg("abs/new/d", "d")},
		"hard links": {reg("a", "content"), link(tar.TypeLink, "b", "a"), link(tar.TypeLink, "deep/c", "/b"), link(tar.TypeSymlink, "s", "a"), link(tar.TypeLink, "s2", "s"),
			reg("x", "1"), link(tar.TypeLink, "y", "x"), reg("x", "2")},
		"attributes": {withXattrs(reg("cap", "x"), map[string]string{"security.capability": capability, "user.a": "1", "user.b": strings.Repeat("v", 3000), "trusted.x": "no", "trusted.overlay.opaque": "y"}),
			withXattrs(dir("dir", 0o700), map[string]string{"user.d": ""}), withXattrs(link(tar.TypeSymlink, "soft", "cap"), map[string]string{"user.dropped": "1"})},
		"attributes of hard links": {withXattrs(reg("may", "x"), map[string]string{"security.capability": capability}),
			withXattrs(link(tar.TypeLink, "also", "may"), map[string]string{"security.capability": capability})},
		"whiteouts": {reg("dir/.wh.gone", ""), dir("opaque", 0o711), reg("opaque/.wh..wh..opq", ""), reg("opaque/kept", "k"), reg(".wh.top", "")},
		"names":     {reg(long, "x"), reg("sp ace/ü\n", "y"), reg("./dot/./x//y", "z"), reg("/absolute", "a"), reg("../../above", "b"), reg("-", "-")},
		"replaced":  {reg("f", "1"), dir("f", 0o700), reg("f/in", "x"), reg("g/h", ""), reg("g", "file"), reg("k", "1"), reg("k", "longer"), dir("m", 0o700), dir("m", 0o755)},
		"deep":      {reg(deep+"f", "x")},
		"many":      many,
	}
}

// described is all that a file is, to be compared.
func described(t *testing.T, root string) map[string]string {
	t.Helper()
	all, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, root)
		if name == "" {
			return nil // the snapshot's
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return err
		}
		text := fmt.Sprintf("mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
		whiteout := st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 0
		if !whiteout {
			text += fmt.Sprintf(" time %d.%09d device %d", st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		}
		if !d.IsDir() {
			if _, seen := first[st.Ino]; !seen {
				first[st.Ino] = name
			}
			text += fmt.Sprintf(" size %d links %d as %s", st.Size, st.Nlink, first[st.Ino])
		}
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" content %x", sha256.Sum256(data))
		case syscall.S_IFLNK:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += " to " + to
		}
		if d.Type()&fs.ModeSymlink == 0 {
			text += xattrsOf(t, p)
		}
		all[name] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func xattrsOf(t *testing.T, p string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := syscall.Listxattr(p, buf)
	if err != nil && !errors.Is(err, syscall.ENOTSUP) {
		t.Fatal(p, err)
	}
	var out []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:max(n, 0)]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := syscall.Getxattr(p, name, value)
		if err != nil {
			t.Fatal(p, name, err)
		}
		out = append(out, fmt.Sprintf(" %s=%q", name, value[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// converted is a layer's blob, mounted.
func converted(t *testing.T, raw []byte, below ...Below) (at string, implied []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "layer.erofs")
	implied, err := blobOf(t, file, raw, below...)
	if err != nil {
		t.Fatal(err)
	}
	return mounted(t, file), implied
}

func blobOf(t testing.TB, file string, raw []byte, below ...Below) ([]string, error) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := Convert(context.Background(), f, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return b.Implied, b.Finish(below)
}

func mounted(t *testing.T, file string) string {
	t.Helper()
	m, err := mount.ErofsLayer(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	at := t.TempDir()
	if err := m.Attach(at); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.Detach(at); err != nil {
			t.Error(err)
		}
	})
	return at
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%.60q:\ngot  %.400s\nwant %.400s", name, got[name], want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%.60q is there", name)
		}
	}
}

func TestLayersAreAsContainerdUnpacksThem(t *testing.T) {
	for name, files := range fixtures() {
		t.Run(name, func(t *testing.T) {
			raw := layerOf(t, files...)
			want := t.TempDir()
			if _, err := archive.Apply(t.Context(), want, bytes.NewReader(raw), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout),
				archive.WithFilter(func(h *tar.Header) (bool, error) { strip(h); return true, nil })); err != nil {
				t.Fatal(err)
			}
			extracted := t.TempDir()
			if _, err := Extract(t.Context(), extracted, bytes.NewReader(raw)); err != nil {
				t.Fatal(err)
			}
			at, implied := converted(t, raw)
			reference, folder, blob := described(t, want), described(t, extracted), described(t, at)
			for _, dir := range implied { // of these, only that they are there is known
				for _, m := range []map[string]string{reference, folder, blob} {
					if m[dir] != "" {
						m[dir] = "implied"
					}
				}
			}
			compare(t, blob, reference)
			compare(t, folder, reference)
		})
	}
}
