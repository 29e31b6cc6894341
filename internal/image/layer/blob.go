// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/image/erofs"
)

// ErrTooManyFiles: a layer with more files than Convert keeps in memory. Extract takes it.
var ErrTooManyFiles = errTooMany

// Blob is a layer on its way into an EROFS file: what its files contain is written, Finish writes the rest.
type Blob struct {
	Result
	tree   *tree
	w      *erofs.Writer
	byPath map[string]*erofs.Inode // implied folders
}

// BlobFile is what Convert writes to; os.File is one. Its name tells which file system it is on.
type BlobFile interface {
	erofs.File
	Name() string
}

// Convert makes an EROFS file system, in the empty file f, of a layer from r, as Extract makes a folder of it. It reads all of r once. f is of
// no use after an error, nor before Finish.
func Convert(ctx context.Context, f BlobFile, r io.Reader) (*Blob, error) {
	room, err := newEntries(f.Name(), r)
	if err != nil {
		return nil, err
	}
	return convert(ctx, f, r, room)
}

func convert(ctx context.Context, f BlobFile, r io.Reader, room *entries) (_ *Blob, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v: %s", ErrCorrupt, p, debug.Stack())
		}
	}()
	plain := newPlain(r)
	defer plain.Close()
	stream := &bounded{ctx: ctx, r: plain, room: room}
	b := &Blob{tree: newTree(), w: erofs.NewWriter(f)}
	if err = b.read(stream, room); err == nil {
		_, err = io.Copy(io.Discard, stream) // what follows the end of the archive counts for the digest
	}
	if err != nil {
		if errors.Is(err, ErrTooManyFiles) {
			return nil, err
		}
		return nil, class(ctx, err)
	}
	if b.DiffID, err = plain.Digest(); err != nil {
		return nil, err
	}
	b.byPath = map[string]*erofs.Inode{}
	b.name("/", b.tree.root)
	slices.Sort(b.Implied)
	return b, nil
}

func (b *Blob) read(stream io.Reader, room *entries) error {
	for archive := tar.NewReader(stream); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = room.fits(h)
		}
		if err == nil {
			strip(h)
			err = b.tree.add(h, b.w, archive)
		}
		if err != nil {
			return err
		}
	}
}

// name finds the paths of implied folders that are still in the tree.
func (b *Blob) name(at string, dir *erofs.Inode) {
	if len(b.tree.implied) == 0 {
		return
	}
	for name, i := range dir.Entries {
		if !i.IsDir() {
			continue
		}
		p := path.Join(at, name)
		if _, implied := b.tree.implied[i]; implied {
			b.Implied = append(b.Implied, p)
			b.byPath[p] = i
		}
		b.name(p, i)
	}
}

// Finish writes the files' metadata, with the attributes of implied folders taken from the layers below, topmost first. The file is not synced.
func (b *Blob) Finish(below []Below) error {
	err := inherit(b.Implied, below, func(dir string, a attrs) error {
		i := b.byPath[dir]
		i.UID, i.GID, i.Mode = uint32(a.uid), uint32(a.gid), i.Mode&typeMask|a.mode&permMask
		i.Mtime, i.Nsec = a.mtime.Unix(), uint32(a.mtime.Nanosecond())
		return nil
	})
	if err != nil {
		return err
	}
	if err := b.w.Close(b.tree.root); err != nil {
		if errors.Is(err, erofs.ErrLimit) {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return fmt.Errorf("write layer: %w", err)
	}
	return nil
}

// attrs are what an implied folder takes over.
type attrs struct {
	uid, gid int
	mode     uint32
	mtime    time.Time
}

// inherit calls set for each implied folder that is in a layer below.
func inherit(implied []string, below []Below, set func(dir string, a attrs) error) error {
	for _, b := range below {
		if len(implied) == 0 {
			return nil
		}
		var left []string
		for _, dir := range implied {
			a, found, err := b.find(strings.TrimPrefix(dir, "/"))
			switch {
			case err != nil:
				return fmt.Errorf("inherit attributes of %s: %w", dir, err)
			case found == absent:
				left = append(left, dir)
			case found == isFolder:
				if err := set(dir, a); err != nil {
					return fmt.Errorf("inherit attributes of %s: %w", dir, err)
				}
			}
		}
		implied = left
	}
	return nil
}
