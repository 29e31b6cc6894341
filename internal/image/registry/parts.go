// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// partSize is what one request for a part of a blob asks for.
	partSize = 8 << 20
	// partsFrom is of how many parts a blob must be at least.
	partsFrom = 3
	// maxBuffers bounds the memory of all parts under way: 64 MiB.
	maxBuffers = 8
	// pieceSize is handed on at a time: it is still in the processor's cache when a digest is made of what was written.
	pieceSize = 512 << 10
	// partTries bounds tries in a row that brought next to nothing of a part; partProgress is more than that.
	partTries    = 4
	partPause    = 250 * time.Millisecond
	partProgress = 64 << 10
)

// Slots are connections that nobody needs at the moment.
type Slots interface {
	TryAcquire(n int64) bool
	Release(n int64)
}

// span is the part of a blob that a request is for: its end, which is not in it.
type span struct{ to int64 }

type spanKey struct{}

// parts reads a blob from several connections: the first is the caller's own, each further one takes a slot that is free. A
// part is as long as a buffer, and a buffer is given back when it is read, so a slow reader slows the network and takes no memory.
//
//	dispatch ── queue, in order ──▶ Read
//	    └── a goroutine for each part ──▶ part.done
type parts struct {
	s     *Session
	outer context.Context // the caller's
	ctx   context.Context
	end   context.CancelFunc
	desc  ocispec.Descriptor
	slots Slots
	size  int64             // of a part
	whole io.ReadSeekCloser // instead, when the registry turns out to send no parts

	off     int64 // of the next byte to read
	begun   bool
	queue   chan *part
	buffers chan []byte
	held    int // buffers of the client's
	now     *part
	wg      sync.WaitGroup
}

type part struct {
	from, to int64
	buf      []byte
	n, read  int
	err      error
	done     chan struct{}
}

// FetchParts is Fetch over as many connections as slots has to give at each moment, and the caller's own; at most width. Small blobs,
// and registries that send no parts, are fetched as Fetch does. The reader can seek before the first Read only.
func (s *Session) FetchParts(ctx context.Context, desc ocispec.Descriptor, width int, slots Slots) (io.ReadSeekCloser, error) {
	buffers := 0
	if !s.whole.Load() && width > 1 && desc.Size >= partsFrom*s.client.cfg.PartSize {
		for buffers < width && s.client.buffers.TryAcquire(1) {
			buffers++
		}
	}
	if buffers < 2 {
		s.client.buffers.Release(int64(buffers))
		return s.Fetch(ctx, desc)
	}
	p := &parts{s: s, outer: ctx, desc: desc, slots: slots, size: s.client.cfg.PartSize, held: buffers, queue: make(chan *part, buffers), buffers: make(chan []byte, buffers)}
	p.ctx, p.end = context.WithCancel(ctx)
	return p, nil
}

// Seek implements io.Seeker for content.Copy, which seeks once, to where an earlier download has stopped.
func (p *parts) Seek(offset int64, whence int) (int64, error) {
	if p.begun || whence != io.SeekStart || offset < 0 {
		return 0, errors.New("seek in parts of a blob after the first read")
	}
	p.off = offset
	return offset, nil
}

func (p *parts) Read(b []byte) (int, error) {
	if p.whole != nil {
		return p.whole.Read(b)
	}
	have, err := p.ready()
	if err != nil {
		return 0, err
	}
	n := copy(b, have)
	return n, p.took(n)
}

// WriteTo implements io.WriterTo: what comes goes from the parts' buffers to w without another between them.
func (p *parts) WriteTo(w io.Writer) (n int64, err error) {
	for p.whole == nil {
		have, err := p.ready()
		if errors.Is(err, io.EOF) {
			return n, nil
		} else if err != nil {
			return n, err
		}
		wrote, err := w.Write(have[:min(len(have), pieceSize)])
		n += int64(wrote)
		if err == nil {
			err = p.took(wrote)
		}
		if err != nil {
			return n, err
		}
	}
	more, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{p.whole}, make([]byte, pieceSize))
	return n + more, err
}

// ready waits for what is to be read next.
func (p *parts) ready() ([]byte, error) {
	if !p.begun {
		p.begun = true
		for range p.held {
			p.buffers <- nil // made when it is needed
		}
		p.wg.Go(p.dispatch)
	}
	if p.now == nil {
		next, ok := <-p.queue
		if !ok {
			return nil, p.ended()
		}
		p.now = next
	}
	select {
	case <-p.now.done:
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
	return p.now.buf[p.now.read:p.now.n], nil
}

// took goes on behind n bytes of what is ready.
func (p *parts) took(n int) error {
	p.now.read += n
	p.off += int64(n)
	if p.now.read < p.now.n {
		return nil
	}
	switch {
	case p.now.err == nil:
	case errors.Is(p.now.err, ErrNoRange) && n == 0:
		return p.takeWhole()
	default:
		p.end()
		return p.now.err
	}
	p.buffers <- p.now.buf // there is room: it holds all buffers
	p.now = nil
	return nil
}

// takeWhole goes on without parts.
func (p *parts) takeWhole() error {
	p.giveUp()
	whole, err := p.s.Fetch(p.outer, p.desc)
	if err != nil {
		return err
	}
	p.whole = whole
	_, err = whole.Seek(p.off, io.SeekStart)
	return err
}

func (p *parts) giveUp() {
	p.end()
	p.wg.Wait()
	p.s.client.buffers.Release(int64(p.held))
	p.held = 0
}

func (p *parts) ended() error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	return io.EOF
}

// Close gives up what is under way and waits for it.
func (p *parts) Close() error {
	p.giveUp()
	if p.whole != nil {
		return p.whole.Close()
	}
	return nil
}

// dispatch begins parts in order, each as soon as there is a buffer and a connection for it.
func (p *parts) dispatch() {
	defer close(p.queue)
	own, freed := make(chan struct{}, 1), make(chan struct{}, 1)
	own <- struct{}{}
	for from := p.off; from < p.desc.Size; from += p.size {
		var buf []byte
		select {
		case buf = <-p.buffers:
		case <-p.ctx.Done():
			return
		}
		release, ok := p.connection(own, freed)
		if !ok {
			return
		}
		one := &part{from: from, to: min(from+p.size, p.desc.Size), buf: buf, done: make(chan struct{})}
		if one.buf == nil {
			one.buf = make([]byte, p.size)
		}
		p.queue <- one // there is room: no more parts than buffers
		p.wg.Go(func() {
			defer close(one.done)
			defer release()
			one.err = p.fetch(one)
		})
	}
}

// connection waits for the blob's own connection or a free slot.
func (p *parts) connection(own, freed chan struct{}) (release func(), ok bool) {
	for {
		select {
		case <-own:
			return func() { own <- struct{}{} }, true
		case <-p.ctx.Done():
			return nil, false
		default:
		}
		if p.slots.TryAcquire(1) {
			return func() {
				p.slots.Release(1)
				select {
				case freed <- struct{}{}:
				default:
				}
			}, true
		}
		select {
		case <-own:
			return func() { own <- struct{}{} }, true
		case <-freed:
		case <-p.ctx.Done():
			return nil, false
		}
	}
}

// fetch fills a part's buffer. A connection that breaks costs a try only if it brought next to nothing; the next goes on where it broke.
func (p *parts) fetch(one *part) error {
	for tries := 1; ; tries++ {
		before := one.n
		err := p.try(one)
		if err == nil || !Interrupted(err) || p.ctx.Err() != nil {
			return err
		}
		if one.n-before >= partProgress {
			tries = 0
		}
		if tries >= partTries {
			return err
		}
		select {
		case <-time.After(partPause<<tries + rand.N(partPause)):
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
}

func (p *parts) try(one *part) error {
	r, err := p.s.Fetch(context.WithValue(p.ctx, spanKey{}, span{one.to}), p.desc)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Seek(one.from+int64(one.n), io.SeekStart); err != nil {
		return err
	}
	n, err := io.ReadFull(r, one.buf[one.n:one.to-one.from])
	one.n += n
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{text: "answer ends too early", class: ErrUnavailable, broken: true}
	}
	return err
}

// narrow makes a request for the rest of a blob one for a part of it.
func narrow(r *http.Request) *http.Request {
	if !forPart(r) {
		return r
	}
	part, _ := r.Context().Value(spanKey{}).(span)
	from, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"), 10, 64)
	if err != nil && r.Header.Get("Range") != "" {
		return r // narrowed before: this is where the registry redirects to
	}
	r = r.Clone(r.Context())
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, part.to-1))
	return r
}

// forPart says whether a request is for a part of a blob.
func forPart(r *http.Request) bool {
	_, ok := r.Context().Value(spanKey{}).(span)
	return ok && r.Method == http.MethodGet && bound(r) != MaxDocument
}
