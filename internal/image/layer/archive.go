// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/fsys"
)

// Archive writes the layer that was unpacked at root, a folder or a mounted file, as an archive again, from which Extract and Convert make the same files: with
// whiteouts in the OCI's form and folders that are all named. Nothing may write to root meanwhile. It is not the archive that the layer came from, and has
// another digest. Extended attributes of symbolic links are left out: the kernel gives them no user's, and no image has others.
func Archive(ctx context.Context, root string, w io.Writer) error {
	a := newArchiver(ctx, root, w)
	// The first bytes of an archive tell its compression: they must not be a file's name.
	err := a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, Format: tar.FormatPAX})
	if err == nil {
		err = a.all()
	}
	if err != nil {
		return fmt.Errorf("archive layer: %w", err)
	}
	return nil
}

// Changes writes what overlayfs has put into a container's upper folder as an archive, like Archive, but for the root itself, which is nobody's change, and
// sockets, which nobody can listen on again. Nothing may write to it meanwhile. root are the host's IDs of the container's root; who is not in its user
// namespace is nobody, as the container sees it. ErrElsewhere.
func Changes(ctx context.Context, upper string, root Owner, w io.Writer) error {
	a := newArchiver(ctx, upper, w)
	a.used, a.owner = true, root
	if err := a.all(); err != nil {
		return fmt.Errorf("archive changes: %w", err)
	}
	return nil
}

// ErrElsewhere means that overlayfs keeps the content of a file or folder in another place of the layers below.
var ErrElsewhere = errors.New("overlayfs keeps it in another place")

// Owner are the host's IDs of a root; those of others follow. The zero value is the host's own.
type Owner struct{ UID, GID int }

// nobody is the ID that the kernel shows for those that a user namespace does not have.
const nobody = 65534

// inside is a host's ID as a user namespace has it whose root is the host's root.
func inside(id uint32, root int) int {
	if int64(id) < int64(root) {
		return nobody
	}
	return int(id) - root
}

type inode struct{ dev, ino uint64 }

type archiver struct {
	ctx   context.Context
	root  string
	w     *tar.Writer
	links map[inode]string // files with several names, by the first
	used  bool             // root is what a container has written, not a layer
	owner Owner
}

func newArchiver(ctx context.Context, root string, w io.Writer) *archiver {
	return &archiver{ctx: ctx, root: root, w: tar.NewWriter(w), links: map[inode]string{}}
}

func (a *archiver) all() error {
	if err := filepath.WalkDir(a.root, a.entry); err != nil {
		return err
	}
	return a.w.Close()
}

func (a *archiver) entry(at string, d fs.DirEntry, err error) error {
	if err == nil {
		err = a.ctx.Err()
	}
	if err != nil || at == a.root {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(at, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: at, Err: err}
	}
	name := strings.TrimPrefix(strings.TrimPrefix(at, a.root), "/")
	h := &tar.Header{Name: name, Mode: int64(st.Mode & permMask), Uid: inside(st.Uid, a.owner.UID), Gid: inside(st.Gid, a.owner.GID), ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
		Format: tar.FormatPAX}
	if a.used && st.Mode&typeMask == modeSocket {
		return nil
	}
	if st.Mode&typeMask == modeChar && st.Rdev == 0 {
		h.Name, h.Typeflag = path.Join(path.Dir(name), whiteoutPrefix+path.Base(name)), tar.TypeReg
		return a.w.WriteHeader(h)
	}
	if err := a.describe(h, at, &st); err != nil {
		return err
	}
	opaque, err := a.attributes(h, at)
	if err == nil {
		err = a.w.WriteHeader(h)
	}
	if err == nil && h.Typeflag == tar.TypeReg {
		err = a.content(at, h.Size)
	}
	if err == nil && opaque {
		err = a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, opaqueMarker), Format: tar.FormatPAX})
	}
	return err
}

// describe fills in what kind of file it is.
func (a *archiver) describe(h *tar.Header, at string, st *syscall.Stat_t) (err error) {
	if st.Mode&typeMask != modeDir && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, known := a.links[id]; known {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return nil
		}
		a.links[id] = h.Name
	}
	switch st.Mode & typeMask {
	case modeDir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case modeReg:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case modeLink:
		h.Typeflag = tar.TypeSymlink
		h.Linkname, err = os.Readlink(at)
	case modeChar, modeBlock:
		h.Typeflag = map[bool]byte{true: tar.TypeChar, false: tar.TypeBlock}[st.Mode&typeMask == modeChar]
		// makedev(3): the kernel's 64 bits, 12 and 20 of which are in use.
		h.Devmajor, h.Devminor = int64(st.Rdev>>8&0xfff), int64(st.Rdev&0xff|st.Rdev>>12&0xfff00)
	case modeFifo:
		h.Typeflag = tar.TypeFifo
	default:
		err = fmt.Errorf("%s: files of mode %o are in no layer: %w", at, st.Mode, ErrCorrupt)
	}
	return err
}

// attributes adds the extended attributes, and tells whether the folder hides what is below it. Each name of a file has them: who unpacks one gives it its
// owner, and that takes a capability away.
func (a *archiver) attributes(h *tar.Header, at string) (opaque bool, err error) {
	if h.Typeflag == tar.TypeSymlink {
		return false, nil
	}
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := syscall.Listxattr(at, list)
	if errors.Is(err, syscall.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "listxattr", Path: at, Err: err}
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for raw := range bytes.SplitSeq(list[:n], []byte{0}) {
		key := string(raw)
		if key == "" {
			continue
		}
		size, err := syscall.Getxattr(at, key, value)
		if err != nil {
			return false, &fs.PathError{Op: "getxattr " + key, Path: at, Err: err}
		}
		if name, ok := strings.CutPrefix(key, overlayPrefix); ok { // overlayfs's own notes, no file's
			if name == "redirect" || name == "metacopy" {
				return false, fmt.Errorf("%s: %w (%s)", at, ErrElsewhere, key)
			}
			opaque = opaque || key == opaqueXattr && string(value[:size]) == "y"
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+key] = string(value[:size])
	}
	return opaque, nil
}

func (a *archiver) content(at string, size int64) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(a.w, fsys.Until{Ctx: a.ctx, Reader: f}, size)
	return err
}
