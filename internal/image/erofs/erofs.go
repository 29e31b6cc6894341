// SPDX-License-Identifier: Apache-2.0

// Package erofs writes EROFS file systems: what an image layer is kept as where the kernel mounts them from files. Package layer
// is its user; it reads none, the kernel and go-erofs do.
//
// A blob is written front to back: a place for the superblock, the data of files as it comes, each file in one run of blocks, then inodes, then
// folders, and at last the superblock. So nothing is written twice and only metadata is kept in memory. go-erofs's own writer knows no
// hard links and copies all data once more.
//
// Format: https://erofs.docs.kernel.org/en/latest/core_ondisk.html
package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// ErrLimit: a file system that the format cannot hold.
var ErrLimit = errors.New("beyond what EROFS can hold")

const (
	blockBits = 12
	blockSize = 1 << blockBits
	// MaxName is the longest name of a folder's entry.
	MaxName = 255

	magic       = 0xe0f5e1e2
	superOffset = 1024
	inodeSize   = 64
	direntSize  = 12
	nidSize     = 32 // inodes are numbered by their place

	flatPlain, flatInline = 0, 2

	typeMask                         = 0o170000
	typeDir, typeReg, typeLink       = 0o040000, 0o100000, 0o120000
	typeChar, typeBlock              = 0o020000, 0o060000
	typeFifo, typeSocket             = 0o010000, 0o140000
	bufferSize                       = 1 << 20
	hole                             = 64 << 10 // runs of zeros of this size are not written
	firstInode                 int64 = 64       // from the metadata's begin: number 0 means "none" to some
)

// Inode is one file. One that stands in several places of the tree has several hard links.
type Inode struct {
	// Mode has the type and the permissions, as in stat(2).
	Mode     uint32
	UID, GID uint32
	// Mtime is in seconds since 1970, Nsec the part of one.
	Mtime int64
	Nsec  uint32
	// Major and Minor are a device's.
	Major, Minor uint32
	// Xattrs by their whole names. Those of unknown namespaces are not kept.
	Xattrs map[string]string
	// Target is a symbolic link's.
	Target string
	// Entries are a folder's.
	Entries map[string]*Inode

	size  uint64 // of a regular file
	block uint32 // where its data begins

	links  uint32
	nid    uint64
	parent *Inode
	names  []string // of the entries, sorted
	xattrs []byte
	tail   []byte // of a folder or link: what stands behind the inode
	data   int64  // bytes of a folder or link, all of it
	first  uint32 // block of what does not stand behind the inode
}

// IsDir tells whether it is a folder.
func (i *Inode) IsDir() bool { return i.Mode&typeMask == typeDir }

// File is what a blob is written to; os.File is one.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Writer writes one blob.
type Writer struct {
	f      File
	buf    []byte
	offset int64 // of buf in the file
	sum    uint32
	err    error
}

// NewWriter begins a blob in f, which must be empty.
func NewWriter(f File) *Writer {
	return &Writer{f: f, buf: make([]byte, 0, bufferSize), offset: blockSize}
}

var zeros [hole]byte

// write appends to the file.
func (w *Writer) write(p []byte) {
	for len(p) > 0 && w.err == nil {
		n := min(len(p), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		if p = p[n:]; len(w.buf) == cap(w.buf) {
			w.flush()
		}
	}
}

// flush writes what is buffered, but for long runs of zeros: they become holes.
func (w *Writer) flush() {
	w.sum = crc32.Update(w.sum, castagnoli, w.buf)
	for b := w.buf; len(b) > 0 && w.err == nil; {
		n := min(len(b), hole)
		if n < hole || string(b[:n]) != string(zeros[:]) {
			for n < len(b) && (len(b)-n < hole || string(b[n:n+hole]) != string(zeros[:])) {
				n += min(hole, len(b)-n)
			}
			_, w.err = w.f.WriteAt(b[:n], w.offset)
		}
		w.offset += int64(n)
		b = b[n:]
	}
	w.buf = w.buf[:0]
}

// position is how many bytes there are by now.
func (w *Writer) position() int64 { return w.offset + int64(len(w.buf)) }

// align fills up the block.
func (w *Writer) align() {
	if over := w.position() % blockSize; over != 0 {
		w.write(zeros[:blockSize-over])
	}
}

// block is the number of the block at the position.
func (w *Writer) block() (uint32, error) {
	n := w.position() >> blockBits
	if n >= math.MaxUint32 {
		return 0, fmt.Errorf("%d blocks: %w", n, ErrLimit)
	}
	return uint32(n), nil
}

// Data takes a regular file's content, size bytes from r: io.ErrUnexpectedEOF if there are fewer.
func (w *Writer) Data(i *Inode, r io.Reader, size int64) error {
	i.size, i.block = uint64(size), 0
	if size == 0 {
		return nil
	}
	var err error
	if i.block, err = w.block(); err != nil {
		return err
	}
	for size > 0 && w.err == nil {
		free := w.buf[len(w.buf):cap(w.buf)]
		n, err := io.ReadFull(r, free[:min(int64(len(free)), size)])
		w.buf = w.buf[:len(w.buf)+n]
		size -= int64(n)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if len(w.buf) == cap(w.buf) {
			w.flush()
		}
	}
	w.align()
	return w.err
}

// Close writes the tree below root and the superblock. The blob is whole only after it; it is not synced.
func (w *Writer) Close(root *Inode) error {
	start, err := w.block()
	if err != nil {
		return err
	}
	l := layout{start: start}
	if err := l.plan(root); err != nil {
		return err
	}
	for _, i := range l.inodes {
		w.pad(int64(start)<<blockBits + int64(i.nid)*nidSize)
		w.write(i.header())
		w.write(i.xattrs)
		w.write(i.tail)
	}
	w.align()
	for _, i := range l.inodes {
		if i.data > int64(len(i.tail)) {
			w.write(i.body()[:i.data-int64(len(i.tail))])
			w.align()
		}
	}
	blocks, err := w.block()
	w.flush()
	if err = errors.Join(err, w.err); err != nil {
		return err
	}
	if err := w.f.Truncate(int64(blocks) << blockBits); err != nil { // it may end in a hole
		return err
	}
	first := make([]byte, blockSize)
	copy(first[superOffset:], superblock(l, root, blocks))
	seal(first, w.sum, int64(blocks)<<blockBits)
	_, err = w.f.WriteAt(first, 0)
	return err
}

func (w *Writer) pad(to int64) {
	for w.position() < to && w.err == nil {
		w.write(zeros[:min(to-w.position(), hole)])
	}
}

func superblock(l layout, root *Inode, blocks uint32) []byte {
	b := make([]byte, 128)
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(root.nid))
	le.PutUint64(b[16:], uint64(len(l.inodes)))
	le.PutUint32(b[36:], blocks)
	le.PutUint32(b[40:], l.start)
	return b
}

// header is the inode as it is on disk, in the format's long form: the short one has no times.
func (i *Inode) header() []byte {
	b := make([]byte, inodeSize)
	le := binary.LittleEndian
	form, size, value := uint16(flatPlain), uint64(i.data), i.first
	switch i.Mode & typeMask {
	case typeReg:
		size, value = i.size, i.block
	case typeChar, typeBlock:
		value = i.Minor&0xff | i.Major<<8 | i.Minor&^0xff<<12
	}
	if len(i.tail) > 0 {
		form = flatInline
	}
	le.PutUint16(b[0:], 1|form<<1)
	if len(i.xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(i.xattrs)-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], uint16(i.Mode))
	le.PutUint64(b[8:], size)
	le.PutUint32(b[16:], value)
	le.PutUint32(b[20:], uint32(i.nid)) // for 32-bit readers only
	le.PutUint32(b[24:], i.UID)
	le.PutUint32(b[28:], i.GID)
	le.PutUint64(b[32:], uint64(i.Mtime))
	le.PutUint32(b[40:], i.Nsec)
	le.PutUint32(b[44:], i.links)
	return b
}
