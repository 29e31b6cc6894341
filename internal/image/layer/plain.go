// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

const (
	// plainBuffers of plainBuffer bytes are what decompression may be ahead of its readers, for a layer: 2 MiB. They are made when they are needed.
	plainBuffers = 8
	plainBuffer  = 256 << 10
)

// plain is a layer without its compression. Three goroutines share the work: one takes the compression away, one makes the digest, and the
// caller's reads. Each buffer goes to both readers and is used again when both are done with it. Close it.
//
//	decompress ──▶ toRead ──▶ Read
//	     ▲    └──▶ toHash ──▶ digest
//	     └───────── free ◀──── both
type plain struct {
	from           io.Reader
	free           chan *piece
	toRead, toHash chan *piece
	stop           chan struct{}
	end            error // of the stream, when toRead is closed: nil is io.EOF
	digester       digest.Digester
	wg             sync.WaitGroup
	now            *piece
	at             int
	ended, closed  bool
}

type piece struct {
	buf  []byte
	n    int
	uses atomic.Int32
}

// newPlain begins to read r.
func newPlain(r io.Reader) *plain {
	p := &plain{from: r, free: make(chan *piece, plainBuffers), toRead: make(chan *piece, plainBuffers), toHash: make(chan *piece, plainBuffers),
		stop: make(chan struct{}), digester: digest.Canonical.Digester()}
	for range plainBuffers {
		p.free <- &piece{}
	}
	p.wg.Go(func() { p.decompress(r) })
	p.wg.Go(func() { p.hash(p.digester.Hash()) })
	return p
}

func (p *plain) decompress(r io.Reader) {
	defer close(p.toHash)
	defer close(p.toRead)
	defer func() {
		if v := recover(); v != nil { // one image's trouble and not the node's
			p.end = fmt.Errorf("%w: %v: %s", ErrCorrupt, v, debug.Stack())
		}
	}()
	z, closer, err := Decompress(r)
	if err != nil {
		p.end = fmt.Errorf("%w: %w", ErrCorrupt, err)
		return
	}
	defer closer()
	for err == nil {
		var b *piece
		select {
		case b = <-p.free:
		case <-p.stop:
			return
		}
		if b.buf == nil {
			b.buf = make([]byte, plainBuffer)
		}
		b.n, err = fill(z, b.buf)
		if a, ok := r.(Arriving); ok {
			a.Unpacked(int64(b.n))
		}
		b.uses.Store(2)
		p.toHash <- b // there is room: both hold all buffers
		p.toRead <- b
	}
	if !errors.Is(err, io.EOF) {
		p.end = err
	}
}

// fill reads until the buffer is full or there is nothing more.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var got int
		got, err = r.Read(buf[n:])
		n += got
	}
	return n, err
}

func (p *plain) hash(h hash.Hash) {
	for b := range p.toHash {
		h.Write(b.buf[:b.n])
		p.done(b)
	}
}

func (p *plain) done(b *piece) {
	if b.uses.Add(-1) == 0 {
		p.free <- b // there is room
	}
}

// Read implements io.Reader.
func (p *plain) Read(to []byte) (int, error) {
	for p.now == nil || p.at == p.now.n {
		if p.now != nil {
			p.done(p.now)
			p.now = nil
		}
		b, ok := <-p.toRead
		if !ok {
			if p.end != nil {
				return 0, p.end
			}
			p.ended = true
			return 0, io.EOF
		}
		p.now, p.at = b, 0
	}
	n := copy(to, p.now.buf[p.at:p.now.n])
	p.at += n
	return n, nil
}

// Close ends what is under way and waits for it: for a read of the compressed layer, too.
func (p *plain) Close() {
	if !p.closed {
		p.closed = true
		close(p.stop)
		if a, ok := p.from.(Arriving); ok {
			a.Interrupt()
		}
	}
	p.wg.Wait()
}

// Digest is that of all of it. Preconditions: Read has returned io.EOF.
func (p *plain) Digest() (digest.Digest, error) {
	if !p.ended {
		return "", errors.New("digest of a layer that was not read to its end")
	}
	p.wg.Wait()
	return p.digester.Digest(), nil
}
