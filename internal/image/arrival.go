// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pasteSize is copied at a time.
const pasteSize = 512 << 10

// arrival is a compressed layer on its way to the disk, and read from there behind the download.
//
//	beginning ── begun ──▶ coming ── end(nil) ──▶ whole: its digest is right
//	                          └───── end(err) ──▶ broken: what is here serves the next try, unless some of it was given back
//
// What is read is given back to the disk only once it is whole: until then a download that breaks goes on from what is here, a daemon's restart
// included. So a reader is not let so far ahead that the disk holds more than its share, see mayRead.
type arrival struct {
	s     *Store
	desc  ocispec.Descriptor
	begun chan struct{} // closed when bytes may come
	ended chan struct{} // closed when no more come
	w     content.Writer
	f     *os.File // what w writes
	turn  *turn    // of who reads
	// atEnd is called when nothing of it is under way any more.
	atEnd    func()
	progress *progress
	tries    *tries

	mu       sync.Mutex
	here     int64
	over     bool
	err      error // of the download
	given    bool  // some was given back: the next try cannot go on from here
	unpacked int64 // bytes that were made of what was read
	news     chan struct{}
}

func (s *Store) newArrival(desc ocispec.Descriptor, p *progress, t *tries) *arrival {
	return &arrival{s: s, desc: desc, progress: p, tries: t, begun: make(chan struct{}), ended: make(chan struct{}), news: make(chan struct{})}
}

// open begins the layer's file, or goes on with that of an earlier try. One that is whole and wrong was being given back when an earlier
// life ended.
func (a *arrival) open(ctx context.Context) (err error) {
	at := &ingestPath{}
	if a.w, err = content.OpenWriter(context.WithValue(ctx, ingestPathKey{}, at), a.s.content, content.WithRef(ingest(a.desc)), content.WithDescriptor(a.desc)); err != nil {
		return err
	}
	if at.dir == "" { // a file of the blob is here that nobody knows of: a crash came while it was deleted
		if err := a.w.Truncate(0); err != nil {
			return fmt.Errorf("begin beside a blob that was being deleted: %w", err)
		}
	}
	status, err := a.w.Status()
	if err != nil {
		return err
	}
	if a.f, err = os.OpenFile(filepath.Join(at.dir, "data"), os.O_RDWR|syscall.O_NOFOLLOW, 0); err != nil {
		return err
	}
	a.here = status.Offset
	if a.here > a.desc.Size || a.here == a.desc.Size && a.w.Digest() != a.desc.Digest {
		a.here = 0
		if err := a.w.Truncate(0); err != nil {
			return fmt.Errorf("begin anew: %w", err)
		}
	}
	close(a.begun)
	return nil
}

// Write appends to the layer.
func (a *arrival) Write(b []byte) (int, error) {
	if int64(len(b)) > a.desc.Size-a.here {
		return 0, fmt.Errorf("more than %d bytes: %w", a.desc.Size, errdefs.ErrFailedPrecondition)
	}
	n, err := a.w.Write(b)
	a.progress.came(a.tries, int64(n))
	a.mu.Lock()
	a.here += int64(n)
	a.tell()
	a.mu.Unlock()
	return n, err
}

// tell wakes the reader. Preconditions: mu is held.
func (a *arrival) tell() {
	close(a.news)
	a.news = make(chan struct{})
}

// take appends all that r has from where the layer ends here, and compares it with what was promised.
func (a *arrival) take(r io.ReadSeeker) error {
	if a.here > 0 {
		if _, err := r.Seek(a.here, io.SeekStart); err != nil {
			return err
		}
	}
	if err := paste(a, r); err != nil {
		return err
	}
	if a.here < a.desc.Size {
		return fmt.Errorf("%d bytes of %d: %w", a.here, a.desc.Size, io.ErrUnexpectedEOF)
	}
	return a.check()
}

// paste copies, from the reader's own buffers if it has some.
func paste(w io.Writer, r io.Reader) error {
	if from, ok := r.(io.WriterTo); ok {
		_, err := from.WriteTo(w)
		return err
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, r, make([]byte, pasteSize))
	return err
}

func (a *arrival) check() error {
	if got := a.w.Digest(); got != a.desc.Digest {
		return fmt.Errorf("what came is %s: %w", got, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// end says how the download has ended.
func (a *arrival) end(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over, a.err = true, err
	a.tell()
	close(a.ended)
}

// result waits until the layer is whole, and verified, or never will be.
func (a *arrival) result(ctx context.Context) error {
	select {
	case <-a.ended:
		return a.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close keeps what is here for the next try, or drops it; the first call counts. Preconditions: the download has ended, nobody reads.
func (a *arrival) close(ctx context.Context, keep bool) error {
	if a.atEnd == nil {
		return nil
	}
	defer a.atEnd()
	a.atEnd = nil
	if a.w == nil {
		return nil
	}
	var errs []error
	if a.f != nil {
		errs = append(errs, a.f.Close())
	}
	if keep && !a.given {
		return errors.Join(append(errs, a.w.Close())...)
	}
	// The content store's writer has the disk write, as it is closed, what there is.
	errs = append(errs, a.w.Truncate(0))
	if err := a.s.content.Abort(context.WithoutCancel(ctx), ingest(a.desc)); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("drop compressed layer: %w", err))
	}
	return errors.Join(append(errs, a.w.Close())...)
}
