// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"
)

// Compression makes a thousand bytes of one (gzip), or ten thousand (zstd). The content of files is bounded by the disk, see fits; what follows
// bounds the rest: bytes that no file has, which cost time, and what is kept in memory.

const (
	// maxPadding and paddingPerEntry bound what an archive has beside the content of files: headers, padding, what follows its end.
	maxPadding      = 64 << 20
	paddingPerEntry = 16 << 10
	// maxMemory bounds what is remembered of a layer while it is unpacked into a folder, maxTree what is remembered for a blob: more than a
	// million files, more than half a million.
	maxMemory = 512 << 20
	maxTree   = 256 << 20
	// entryMemory is what an entry takes beside its texts, nodeMemory a file of a tree.
	entryMemory, nodeMemory, folderMemory = 256, 320, 320
)

// bounded is a layer without its compression, which ends with the context and with what its entries announce.
type bounded struct {
	ctx  context.Context
	r    io.Reader
	room *entries
	read uint64
}

func (b *bounded) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.read += uint64(n)
	if most := b.room.bytes + b.room.count*paddingPerEntry + maxPadding; b.read > most {
		return 0, fmt.Errorf("%w: %d bytes, and no more than %d are explained by its %d files", ErrCorrupt, b.read, most, b.room.count)
	}
	return n, err
}

// remember takes the memory for an entry.
func (e *entries) remember(h *tar.Header) error {
	n := entryMemory + 2*len(h.Name)
	if h.Typeflag == tar.TypeDir { // archive.Apply comes back to folders at the end
		n += len(h.Name) + len(h.Linkname) + textOf(h.PAXRecords)
	}
	if e.memory -= n; e.memory < 0 {
		return fmt.Errorf("%w: what is to be remembered of its %d entries takes too much memory", ErrCorrupt, e.count)
	}
	return nil
}

func textOf(records map[string]string) (n int) {
	for k, v := range records {
		n += len(k) + len(v)
	}
	return n
}

// strip takes out records that nobody reads, and the attributes in which overlayfs keeps its own books. An image that could write them would say
// which folders are merged with which.
func strip(h *tar.Header) {
	for k := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok || strings.HasPrefix(name, overlayPrefix) || strings.HasPrefix(name, "user.overlay.") {
			delete(h.PAXRecords, k)
		}
	}
}
