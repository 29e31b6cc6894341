// SPDX-License-Identifier: Apache-2.0

// Package layer unpacks one image layer, into a folder for overlayfs or an EROFS file. It knows neither registries nor snapshots; package
// image is its only user.
//
// Layers of an image are unpacked side by side, so a layer cannot see those below it. What it lacks then are the attributes of
// folders that it goes into without naming them; Inherit copies them once the layers below are there.
package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// ErrCorrupt: the layer is not what a layer must be. Errors of the disk are not of this kind.
var ErrCorrupt = errors.New("corrupt layer")

const (
	// maxWindow bounds what a zstd frame may ask to be kept in memory.
	maxWindow = 128 << 20
	readAhead = 256 << 10
	// maxEntries bounds the files of a layer where the file system does not count them.
	maxEntries = 8 << 20
)

// Result tells what was unpacked.
type Result struct {
	// DiffID is the digest of the layer without compression.
	DiffID digest.Digest
	// Implied are folders that were made because something is in them, without an entry of their own, parents first.
	Implied []string
}

// Extract unpacks a layer from r (tar, or tar with gzip or zstd) into dir, whiteouts in overlayfs's form. Its files are the layer's: nothing
// outside of dir is touched, whatever links are in it. dir is of no use after an error.
func Extract(ctx context.Context, dir string, r io.Reader) (Result, error) {
	return Apply(ctx, Target{Folder: dir, Overlay: true}, r)
}

// Target is where a layer is unpacked.
type Target struct {
	Folder string
	// Overlay: Folder is to be a layer of an overlay, whiteouts in its form; else it has what is in the layers below, and whiteouts take that away.
	Overlay bool
	// Parents are the folders of the layers below, topmost first, from which folders take their attributes that the layer does not name.
	Parents []string
	// Owner are the host's IDs of the root to whom the files belong, as others to those that follow.
	Owner Owner
}

// Apply is Extract to any target.
func Apply(ctx context.Context, to Target, r io.Reader) (_ Result, err error) {
	dir := to.Folder
	// What is read here was written by strangers: a parser's panic is one image's trouble and not the node's.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v: %s", ErrCorrupt, p, debug.Stack())
		}
	}()
	entries, err := newEntries(dir, r)
	if err != nil {
		return Result{}, err
	}
	entries.owner = to.Owner
	plain := newPlain(r)
	defer plain.Close()
	stream := &bounded{ctx: ctx, r: plain, room: entries}
	opts := []archive.ApplyOpt{archive.WithFilter(entries.see)}
	if to.Overlay {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	if len(to.Parents) > 0 {
		opts = append(opts, archive.WithParents(to.Parents))
	}
	_, err = archive.Apply(ctx, dir, stream, opts...)
	if err == nil {
		_, err = io.Copy(io.Discard, stream) // what follows the end of the archive counts for the digest
	}
	if err != nil {
		return Result{}, class(ctx, err)
	}
	sum, err := plain.Digest()
	return Result{DiffID: sum, Implied: entries.unnamed()}, err
}

// Decompress tells the compression (gzip, zstd, none) by its first bytes, because media types are wrong at times. Call the function that it returns
// at the end.
func Decompress(r io.Reader) (io.Reader, func(), error) {
	buffered := bufio.NewReaderSize(r, readAhead)
	head, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { z.Close() }, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return buffered, func() {}, nil
}

// class tells apart what the disk or the caller did from what is wrong with the layer.
func class(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, ours := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.EPERM, syscall.EACCES} {
		if errors.Is(err, ours) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// entries keeps the books of which folders a layer names, and which it only goes into; and of what it takes.
type entries struct {
	named, entered map[string]struct{}
	bytes, free    uint64
	count, inodes  uint64
	memory         int // that is left
	owner          Owner
}

// Returner is a compressed layer that gives its space back to the disk while it is read: a layer's reader may be one.
type Returner interface {
	// Returns is how many bytes the disk gets back, of all of it.
	Returns() int64
}

// Arriving is a compressed layer that is read while it comes: a layer's reader may be one. Its methods may be called from any goroutine.
type Arriving interface {
	// Unpacked is told how many more bytes were made of what was read.
	Unpacked(n int64)
	// Interrupt ends a Read that waits: nobody wants the rest.
	Interrupt()
}

func newEntries(dir string, r io.Reader) (*entries, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", dir, err)
	}
	e := &entries{named: map[string]struct{}{}, entered: map[string]struct{}{}, free: st.Bavail * uint64(st.Bsize), inodes: maxEntries, memory: maxMemory}
	if back, ok := r.(Returner); ok {
		e.free += uint64(max(back.Returns(), 0))
	}
	if st.Ffree > 0 { // some file systems do not count
		e.inodes = min(e.inodes, st.Ffree)
	}
	return e, nil
}

// fits refuses what cannot fit on the disk before the disk is full: a few bytes of zeros that are compressed, or a hole in a file, can say that
// they are as large as they like. Every byte that is written has been announced by an entry.
func (e *entries) fits(h *tar.Header) error {
	if e.count++; e.count > e.inodes {
		return fmt.Errorf("layer has more than the %d files that fit: %w", e.inodes, syscall.ENOSPC)
	}
	if h.Size > 0 {
		e.bytes += uint64(h.Size)
	}
	if e.bytes > e.free {
		return fmt.Errorf("layer has more than the %d bytes that fit: %w", e.free, syscall.ENOSPC)
	}
	return nil
}

// see is called for each entry of the archive, before it is unpacked.
func (e *entries) see(h *tar.Header) (bool, error) {
	if err := e.fits(h); err != nil {
		return false, err
	}
	strip(h)
	if err := e.remember(h); err != nil {
		return false, err
	}
	h.Uid, h.Gid = h.Uid+e.owner.UID, h.Gid+e.owner.GID
	name := path.Clean("/" + h.Name)
	if h.Typeflag == tar.TypeDir {
		e.named[name] = struct{}{}
	}
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if _, known := e.entered[dir]; known {
			break
		}
		e.entered[dir] = struct{}{}
	}
	return true, nil
}

func (e *entries) unnamed() []string {
	maps.DeleteFunc(e.entered, func(dir string, _ struct{}) bool { _, named := e.named[dir]; return named })
	return slices.Sorted(maps.Keys(e.entered)) // a folder sorts before what is in it
}

// Inherit gives implied folders of dir the owner, mode and time that they have in the layers below, topmost first. Without
// it a layer that has only tmp/x would make /tmp a folder of root alone.
func Inherit(dir string, implied []string, below []Below) error {
	if len(implied) == 0 || len(below) == 0 {
		return nil
	}
	top, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("inherit attributes: %w", err)
	}
	defer top.Close()
	return inherit(implied, below, func(dir string, a attrs) error {
		name := strings.TrimPrefix(dir, "/")
		if mine, err := top.Lstat(name); err == nil && mine.IsDir() {
			return errors.Join(top.Chown(name, a.uid, a.gid), top.Chmod(name, fileMode(a.mode)), top.Chtimes(name, a.mtime, a.mtime))
		}
		return nil // a later entry of the layer has replaced it, or a link leads elsewhere
	})
}
