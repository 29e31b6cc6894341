// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/image/erofs"
)

// A layer that becomes a blob is a tree in memory until all of it is read. The rules are those by which containerd's archive.Apply makes
// folders and files of the same layer; a test holds both against each other.

const (
	typeMask, permMask                        = 0o170000, 0o7777
	modeDir, modeReg, modeLink                = 0o040000, 0o100000, 0o120000
	modeChar, modeBlock, modeFifo, modeSocket = 0o020000, 0o060000, 0o010000, 0o140000
	maxDepth, maxPath, maxTarget, maxSymlinks = 2048, 4000, 4095, 255

	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	overlayPrefix  = "trusted.overlay."
	opaqueXattr    = overlayPrefix + "opaque"
	xattrPrefix    = "SCHILY.xattr."
)

// tree is a layer's files.
type tree struct {
	root   *erofs.Inode
	memory int // that is left
	// implied are folders that something is in and that have no entry of their own.
	implied map[*erofs.Inode]struct{}
}

func newTree() *tree {
	return &tree{root: folder(), memory: maxTree, implied: map[*erofs.Inode]struct{}{}}
}

func folder() *erofs.Inode {
	return &erofs.Inode{Mode: modeDir | 0o755, Entries: map[string]*erofs.Inode{}}
}

// errTooMany: more files than are kept in memory. Such a layer is unpacked file by file.
var errTooMany = fmt.Errorf("files of the layer take more than %d bytes of memory", maxTree)

// remember takes memory for something.
func (t *tree) remember(n int) error {
	if t.memory -= n; t.memory < 0 {
		return errTooMany
	}
	return nil
}

func (t *tree) put(dir *erofs.Inode, name string, i *erofs.Inode) error {
	if len(name) > erofs.MaxName || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: file name of %d characters", ErrCorrupt, len(name))
	}
	n := nodeMemory + 2*len(name) + len(i.Target)
	if i.IsDir() {
		n += folderMemory
	}
	if err := t.remember(n); err != nil {
		return err
	}
	dir.Entries[name] = i
	return nil
}

// place is where a path leads: a folder and the names on the way to it, for "..".
type place struct{ dirs []*erofs.Inode }

func (p place) dir() *erofs.Inode { return p.dirs[len(p.dirs)-1] }

// walk follows a path to a folder, symbolic links as if the layer were the whole world. Folders that are missing are made if make says so.
func (t *tree) walk(name string, create bool) (place, error) {
	at := place{[]*erofs.Inode{t.root}}
	left := strings.Split(name, "/")
	for links := 0; len(left) > 0; {
		part := left[0]
		left = left[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at.dirs) > 1 {
				at.dirs = at.dirs[:len(at.dirs)-1]
			}
			continue
		}
		next := at.dir().Entries[part]
		switch {
		case next == nil && !create:
			return at, fmt.Errorf("%w: %s does not exist", ErrCorrupt, name)
		case next == nil:
			next = folder()
			if err := t.put(at.dir(), part, next); err != nil {
				return at, err
			}
			t.implied[next] = struct{}{}
		case next.Mode&typeMask == modeLink:
			if links++; links > maxSymlinks {
				return at, fmt.Errorf("%w: %s: more than %d symbolic links", ErrCorrupt, name, maxSymlinks)
			}
			if path.IsAbs(next.Target) {
				at.dirs = at.dirs[:1]
			}
			left = append(strings.Split(next.Target, "/"), left...)
			continue
		case !next.IsDir():
			return at, fmt.Errorf("%w: %s: %s is not a folder", ErrCorrupt, name, part)
		}
		if at.dirs = append(at.dirs, next); len(at.dirs) > maxDepth {
			return at, fmt.Errorf("%w: folders in one another more than %d deep", ErrCorrupt, maxDepth)
		}
	}
	return at, nil
}

// add takes one entry of the archive; data is its content.
func (t *tree) add(h *tar.Header, w *erofs.Writer, data io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := path.Clean(h.Name)
	if len(name) > maxPath {
		return fmt.Errorf("%w: path of %d characters", ErrCorrupt, len(name))
	}
	parent, base := path.Split(name)
	at, err := t.walk(parent, true)
	if err != nil {
		return err
	}
	if base == "" || base == "." || base == ".." {
		return nil // the root is the snapshot's
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return t.whiteout(at.dir(), base, hidden, h)
	}
	i, err := t.make(at.dir(), base, h)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeGNUSparse {
		if err := w.Data(i, data, h.Size); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	// Encoded they are there once more.
	if err := t.remember(2 * textOf(h.PAXRecords)); err != nil {
		return err
	}
	return attributes(i, h)
}

// whiteout hides what layers below have. What this layer itself has of that name stays: OCI image-spec, layer.md, "Whiteouts".
func (t *tree) whiteout(dir *erofs.Inode, base, hidden string, h *tar.Header) error {
	if base == opaqueMarker {
		return setXattr(dir, opaqueXattr, "y")
	}
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("%w: whiteout %q of no file", ErrCorrupt, base)
	}
	switch mine := dir.Entries[hidden]; {
	case mine == nil:
		i := &erofs.Inode{Mode: modeChar, UID: uint32(h.Uid), GID: uint32(h.Gid)}
		return t.put(dir, hidden, i)
	case mine.IsDir():
		return setXattr(mine, opaqueXattr, "y")
	}
	return nil
}

func isWhiteout(i *erofs.Inode) bool {
	return i != nil && i.Mode&typeMask == modeChar && i.Major == 0 && i.Minor == 0
}

// make puts a file in its place, or finds the folder that is there.
func (t *tree) make(dir *erofs.Inode, base string, h *tar.Header) (*erofs.Inode, error) {
	before := dir.Entries[base]
	if before != nil && before.IsDir() && h.Typeflag == tar.TypeDir {
		delete(t.implied, before)
		return before, nil
	}
	delete(dir.Entries, base)
	i := &erofs.Inode{}
	switch h.Typeflag {
	case tar.TypeDir:
		i = folder()
		if isWhiteout(before) {
			i.Xattrs = map[string]string{opaqueXattr: "y"}
		}
	case tar.TypeReg, tar.TypeGNUSparse:
		i.Mode = modeReg
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if err := device(i, h); err != nil {
			return nil, err
		}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxTarget || strings.ContainsRune(h.Linkname, 0) {
			return nil, fmt.Errorf("%w: symbolic link to %d characters", ErrCorrupt, len(h.Linkname))
		}
		i.Mode, i.Target = modeLink|0o777, h.Linkname
	case tar.TypeLink:
		var err error
		if i, err = t.linked(h.Linkname); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: entry of type %q", ErrCorrupt, h.Typeflag)
	}
	return i, t.put(dir, base, i)
}

func device(i *erofs.Inode, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeChar:
		i.Mode = modeChar
	case tar.TypeBlock:
		i.Mode = modeBlock
	default:
		i.Mode = modeFifo
		return nil
	}
	if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
		return fmt.Errorf("%w: device number %d:%d", ErrCorrupt, h.Devmajor, h.Devminor)
	}
	i.Major, i.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	return nil
}

// linked is the file that a hard link is another name of. A symbolic link at the end is not followed.
func (t *tree) linked(target string) (*erofs.Inode, error) {
	parent, base := path.Split(path.Clean(target))
	at, err := t.walk(parent, false)
	if err != nil {
		return nil, err
	}
	i := at.dir().Entries[base]
	if i == nil || i.IsDir() {
		return nil, fmt.Errorf("%w: hard link to %q, which is no file", ErrCorrupt, target)
	}
	return i, nil
}

// attributes are what the entry says of its file.
func attributes(i *erofs.Inode, h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > math.MaxUint32-1 || int64(h.Gid) > math.MaxUint32-1 {
		return fmt.Errorf("%w: %s: owner %d:%d", ErrCorrupt, h.Name, h.Uid, h.Gid)
	}
	i.UID, i.GID = uint32(h.Uid), uint32(h.Gid)
	if i.Mode&typeMask != modeLink {
		i.Mode = i.Mode&typeMask | uint32(h.Mode)&permMask
	}
	t := h.ModTime
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		t = time.Unix(0, 0)
	}
	i.Mtime, i.Nsec = t.Unix(), uint32(t.Nanosecond())
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		switch {
		case !ok, strings.HasPrefix(name, "trusted."): // never an image's to say
			continue
		case strings.HasPrefix(name, "user.") && !i.IsDir() && i.Mode&typeMask != modeReg:
			continue // xattr(7): these are for files and folders
		}
		if err := setXattr(i, name, value); err != nil {
			return err
		}
	}
	return nil
}

// setXattr bounds what Linux bounds.
func setXattr(i *erofs.Inode, name, value string) error {
	if len(name) > 255 || len(value) > math.MaxUint16 || len(i.Xattrs) > 1024 {
		return fmt.Errorf("%w: extended attribute of %d bytes", ErrCorrupt, len(value))
	}
	if i.Xattrs == nil {
		i.Xattrs = map[string]string{}
	}
	i.Xattrs[name] = value
	return nil
}
