// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"os"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/internal/linux/syncfs"
)

// flushStep is what the disk begins to write at a time.
const flushStep = 8 << 20

// flushedFile is a file that is written front to back and then synced. The disk begins to write what is there meanwhile, and not all at the end.
type flushedFile struct {
	*os.File

	begun int64
	off   bool
}

func (s *Store) flushed(f *os.File) layer.BlobFile {
	if s.cfg.SkipSync {
		return f
	}
	return &flushedFile{File: f}
}

// WriteAt implements io.WriterAt.
func (f *flushedFile) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(b, at)
	if to := at + int64(n); err == nil && !f.off && to-f.begun >= flushStep {
		err = syncfs.Begin(f.File, f.begun, to-f.begun)
		f.begun, f.off = to, errors.Is(err, errors.ErrUnsupported)
		if f.off {
			err = nil
		}
	}
	return n, err
}
