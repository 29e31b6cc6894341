// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// layout gives each inode its place.
type layout struct {
	start  uint32 // block of the first inode
	inodes []*Inode
}

// plan finds all inodes and places them: inodes one after the other, what does not fit behind them in blocks after the last.
func (l *layout) plan(root *Inode) error {
	root.links, root.parent = 0, root
	if err := l.collect(root); err != nil {
		return err
	}
	at := firstInode
	for _, i := range l.inodes {
		if err := i.encodeXattrs(); err != nil {
			return err
		}
		i.data = i.length()
		head, tail := int64(inodeSize+len(i.xattrs)), i.data%blockSize
		if tail > 0 && head+tail > blockSize {
			tail = 0
		}
		fixed := head + tail // must not cross the end of a block
		if fixed > blockSize {
			fixed = inodeSize
		}
		if at%blockSize+fixed > blockSize {
			at = (at + blockSize - 1) &^ (blockSize - 1)
		}
		i.nid = uint64(at / nidSize)
		i.tail = make([]byte, tail)
		at = (at + head + tail + nidSize - 1) &^ (nidSize - 1)
	}
	next := int64(l.start) + (at+blockSize-1)>>blockBits
	for _, i := range l.inodes {
		if rest := i.data - int64(len(i.tail)); rest > 0 {
			i.first = uint32(next)
			next += (rest + blockSize - 1) >> blockBits
		}
		if len(i.tail) > 0 { // only now are all numbers known
			body := i.body()
			copy(i.tail, body[len(body)-len(i.tail):])
		}
	}
	if next >= 1<<32 {
		return fmt.Errorf("%d blocks: %w", next, ErrLimit)
	}
	return nil
}

// collect walks the tree, folders' contents together, and counts links.
func (l *layout) collect(root *Inode) error {
	l.inodes = append(l.inodes, root)
	root.links = 2
	for n := 0; n < len(l.inodes); n++ {
		dir := l.inodes[n]
		if !dir.IsDir() {
			continue
		}
		dir.names = slices.Sorted(maps.Keys(dir.Entries))
		for _, name := range dir.names {
			i := dir.Entries[name]
			if name == "" || len(name) > MaxName {
				return fmt.Errorf("name of %d characters: %w", len(name), ErrLimit)
			}
			switch {
			case !i.IsDir():
				if i.links++; i.links > 1 {
					continue // another name of what was seen
				}
			default:
				i.parent, i.links = dir, 2
				dir.links++
			}
			l.inodes = append(l.inodes, i)
		}
	}
	return nil
}

// length is how many bytes a folder or a link has.
func (i *Inode) length() int64 {
	switch i.Mode & typeMask {
	case typeLink:
		return int64(len(i.Target))
	case typeDir:
		var total int64
		i.blocks(func(entries []string, size int, last bool) {
			if !last {
				size = blockSize
			}
			total += int64(size)
		})
		return total
	}
	return 0
}

// sorted are the names of a folder's entries with its own two. They are looked for by halving, in bytes' order.
func (i *Inode) sorted() []string {
	all := make([]string, 0, len(i.names)+2)
	all = append(all, i.names...)
	for _, dot := range []string{".", ".."} {
		at, _ := slices.BinarySearch(all, dot)
		all = slices.Insert(all, at, dot)
	}
	return all
}

// blocks calls f for each block of a folder.
func (i *Inode) blocks(f func(entries []string, size int, last bool)) {
	all := i.sorted()
	for begin := 0; begin < len(all); {
		size, end := 0, begin
		for end < len(all) && size+direntSize+len(all[end]) <= blockSize {
			size += direntSize + len(all[end])
			end++
		}
		f(all[begin:end], size, end == len(all))
		begin = end
	}
}

// body is what a folder or link contains.
func (i *Inode) body() []byte {
	if i.Mode&typeMask == typeLink {
		return []byte(i.Target)
	}
	out := make([]byte, 0, i.data)
	i.blocks(func(entries []string, _ int, last bool) {
		begin, name := len(out), len(entries)*direntSize
		for _, e := range entries {
			to := i.entry(e)
			out = binary.LittleEndian.AppendUint64(out, to.nid)
			out = binary.LittleEndian.AppendUint16(out, uint16(name))
			out = append(out, to.fileType(), 0)
			name += len(e)
		}
		for _, e := range entries {
			out = append(out, e...)
		}
		if !last {
			out = append(out, zeros[:blockSize-(len(out)-begin)]...)
		}
	})
	return out
}

func (i *Inode) entry(name string) *Inode {
	switch name {
	case ".":
		return i
	case "..":
		return i.parent
	}
	return i.Entries[name]
}

// fileType is the type as folders have it.
func (i *Inode) fileType() byte {
	switch i.Mode & typeMask {
	case typeReg:
		return 1
	case typeDir:
		return 2
	case typeChar:
		return 3
	case typeBlock:
		return 4
	case typeFifo:
		return 5
	case typeSocket:
		return 6
	case typeLink:
		return 7
	}
	return 0
}
