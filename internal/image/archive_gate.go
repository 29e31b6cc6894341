// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
)

const (
	// maxArchiveList bounds manifest.json, in bytes: what the importer makes of it takes up to 60 times as much memory. A hundred images of 120 layers
	// have 1 MB.
	maxArchiveList = 2 << 20
	// maxArchiveEntries bounds what is in an archive: the importer keeps the name of each link and file.
	maxArchiveEntries = 30_000
)

// gate lets an archive of images through as long as it is one that the importer can be given: it trusts some of what it reads, and keeps it. Reads
// fail where it is not. Close must be called; nothing is read any more once it has returned.
type gate struct {
	*io.PipeReader
	done chan struct{}
}

func newGate(in io.Reader) *gate {
	r, w := io.Pipe()
	g := &gate{r, make(chan struct{})}
	go func() {
		defer close(g.done)
		err := inspectArchive(in, w)
		if errors.Is(err, io.ErrClosedPipe) { // nobody reads
			err = nil
		}
		w.CloseWithError(err) // never fails
	}()
	return g
}

func (g *gate) Close() error {
	err := g.PipeReader.Close()
	<-g.done
	return err
}

// inspectArchive copies the archive to out, each part after what comes before it has been looked at.
func inspectArchive(in io.Reader, out io.Writer) error {
	t := tar.NewReader(io.TeeReader(in, out))
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(out, in) // what is behind the archive's end
			return err
		}
		if err != nil {
			return err
		}
		if n == maxArchiveEntries {
			return fmt.Errorf("more than %d entries", maxArchiveEntries)
		}
		if path.Clean(h.Name) == "manifest.json" && h.Size > maxArchiveList {
			return fmt.Errorf("manifest.json has %d bytes, more than %d", h.Size, maxArchiveList)
		}
	}
}
