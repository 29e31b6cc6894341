// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/berth-run/berth/internal/image/layer"
)

const (
	// headStart is the part of a compressed layer, in parts of all of it, that is read before it is known how much space unpacking takes.
	headStart = 16
	// peakOfDisk bounds what the disk holds of a layer, compressed and not, in parts of peakParts of its unpacked size.
	peakOfDisk, peakParts = 11, 10
)

var _ layer.Arriving = (*follower)(nil)

// follow gives a reader of the layer, which ends when ctx does. While it waits for the network, the reader's turn and time stand still.
func (a *arrival) follow(ctx context.Context) *follower {
	ctx, stop := context.WithCancelCause(ctx)
	a.mu.Lock()
	a.unpacked = 0
	a.mu.Unlock()
	return &follower{a: a, ctx: ctx, stop: stop, file: returning{File: a.f, step: max(consumeStep, a.desc.Size/consumeShare)}}
}

// follower reads an arrival from its start.
type follower struct {
	a      *arrival
	ctx    context.Context
	stop   context.CancelCauseFunc
	file   returning
	at     int64
	mark   struct{ at, unpacked int64 }
	lately float64 // what a byte has become since the mark before
}

// Read gives what is here, and io.EOF only when all is here and verified.
func (f *follower) Read(p []byte) (int, error) {
	have, whole, err := f.wait()
	if err != nil {
		return 0, err
	}
	if have == f.at {
		return 0, io.EOF
	}
	n, err := f.file.ReadAt(p[:min(int64(len(p)), have-f.at)], f.at)
	f.at += int64(n)
	if errors.Is(err, io.EOF) { // somebody has cut the file
		err = io.ErrUnexpectedEOF
	}
	if err == nil && whole {
		err = f.file.giveBack(f.at)
		f.a.given = f.a.given || f.file.gone > 0
	}
	return n, err
}

// wait returns how much there is to read, more than was read unless the layer is whole.
func (f *follower) wait() (have int64, whole bool, err error) {
	waited := false
	for {
		f.a.mu.Lock()
		have, whole, err = f.a.here, f.a.over && f.a.err == nil, f.a.err
		unpacked, news := f.a.unpacked, f.a.news
		f.a.mu.Unlock()
		if err == nil {
			err = context.Cause(f.ctx)
		}
		if err != nil || whole || have > f.at && f.mayRead(have, unpacked) {
			break
		}
		if !waited {
			waited = true
			f.a.turn.pause()
		}
		select {
		case <-news:
		case <-f.ctx.Done():
		}
	}
	if waited && err == nil {
		err = f.a.turn.resume()
	}
	return have, whole, err
}

// mayRead tells whether more may be unpacked before the layer is whole. The disk may hold peakOfDisk of what the layer is going to take, if its
// rest grows as all of it did until now, or as it did lately if that is less; and unpacking must not take the space that the download needs.
func (f *follower) mayRead(have, unpacked int64) bool {
	size := f.a.desc.Size
	if since := f.at - f.mark.at; since >= f.file.step {
		f.lately = float64(unpacked-f.mark.unpacked) / float64(since)
		f.mark.at, f.mark.unpacked = f.at, unpacked
	}
	if f.at > size/headStart {
		grows := float64(unpacked) / float64(f.at)
		if f.lately > 0 {
			grows = min(grows, f.lately)
		}
		all := float64(unpacked) + grows*float64(size-f.at)
		if float64(size+unpacked) > all*peakOfDisk/peakParts {
			return false
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(f.a.s.cfg.Root, &st); err != nil {
		return false
	}
	return int64(st.Bavail)*st.Bsize > size-have+size/headStart+spare
}

// Returns implements layer.Returner.
func (f *follower) Returns() int64 {
	f.a.mu.Lock()
	defer f.a.mu.Unlock()
	return f.a.here - f.file.step
}

// Unpacked and Interrupt implement layer.Arriving.
func (f *follower) Unpacked(n int64) {
	f.a.mu.Lock()
	defer f.a.mu.Unlock()
	f.a.unpacked += n
}

// errUnread: nobody wants the rest.
var errUnread = errors.New("the rest of the layer is not read")

// Interrupt ends a Read that waits.
func (f *follower) Interrupt() { f.stop(errUnread) }

// Close implements io.Closer.
func (f *follower) Close() error {
	f.stop(errUnread)
	return nil
}
