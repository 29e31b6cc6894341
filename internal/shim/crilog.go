// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-run/berth/internal/linux/fsys"
)

const (
	// maxLogLine is the most content that one line of the log holds; longer lines are split. The kubelet
	// and every other CRI runtime use the same figure.
	maxLogLine = 16 << 10
	// bufferSize is that of one read and of one write: several short lines or one of the longest.
	bufferSize = 32 << 10
)

// buffers are held only while there is something to copy.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// criLog is a container's log file in CRI format, both streams in one file. A log that cannot be written
// drops and counts: a full disk must not stop the container.
type criLog struct {
	path    string // empty: everything is dropped, uncounted
	folder  string // the path is below it
	dropped atomic.Uint64

	mu   sync.Mutex // also keeps the lines of the two streams, and a reopen, apart
	file *os.File   // nil: closed, or no path
	torn bool       // the file ends in a broken line that could not be cut off
}

// openLog opens the file, creating it; its folder must exist. folder is where it is, at any depth; empty: in its own folder.
func openLog(folder, path string) (*criLog, error) {
	log := &criLog{folder: folder, path: path}
	if path == "" {
		return log, nil
	}
	if folder == "" {
		log.folder = filepath.Dir(path)
	}
	var err error
	log.file, err = log.open()
	return log, err
}

// open follows no symbolic link from its folder on, which a pod may be able to write to, and takes only a regular file.
func (l *criLog) open() (*os.File, error) {
	below, err := filepath.Rel(l.folder, l.path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	file, err := fsys.AppendBeneath(l.folder, below, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return file, nil
}

// reopen goes over to a new file at the path, between two lines. On an error the old file stays in use.
func (l *criLog) reopen() error {
	if l.path == "" {
		return nil
	}
	file, err := l.open()
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.file
	l.file, l.torn = file, false
	l.mu.Unlock()
	if old != nil {
		old.Close() // every line in it was written with write(2), nothing is buffered
	}
	return nil
}

// close drops what is still written afterwards.
func (l *criLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

// write appends whole lines in one write(2). header is the length of what precedes the content of each.
func (l *criLog) write(lines []byte, header int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		if l.path != "" {
			l.dropped.Add(contentSize(lines, header))
		}
		return
	}
	if l.torn {
		if _, err := l.file.Write([]byte{'\n'}); err != nil {
			l.dropped.Add(contentSize(lines, header))
			return
		}
		l.torn = false
	}
	n, err := l.file.Write(lines)
	if err == nil {
		return
	}
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	l.dropped.Add(contentSize(lines[whole:], header))
	if n > whole {
		l.torn = !cutTail(l.file, int64(n-whole))
	}
}

// cutTail takes the last n bytes off the file.
func cutTail(file *os.File, n int64) bool {
	info, err := file.Stat()
	return err == nil && info.Size() >= n && file.Truncate(info.Size()-n) == nil
}

// contentSize is what the lines hold without their headers and newlines.
func contentSize(lines []byte, header int) uint64 {
	return uint64(len(lines) - bytes.Count(lines, []byte{'\n'})*(header+1))
}

// logStream writes one of the two output streams; it is used by one goroutine.
type logStream struct {
	log *criLog
	tag string // " stdout " or " stderr "

	pending *[bufferSize]byte // the begin of a line whose end has not been read yet
	size    int               // of pending
	out     logBatch

	now func() time.Time
}

func newLogStream(log *criLog, stream string) *logStream {
	return &logStream{log: log, tag: " " + stream + " ", now: time.Now}
}

// put takes what was read from the container, of any size and with any number of line ends.
func (s *logStream) put(p []byte) error {
	if s.log.path == "" {
		return nil
	}
	batch := s.batch()
	defer batch.end()
	for len(p) > 0 {
		room := maxLogLine - s.size
		end := bytes.IndexByte(p[:min(len(p), room+1)], '\n')
		switch {
		case end >= 0:
			batch.add('F', s.held(), p[:end])
			s.release()
			p = p[end+1:]
		case len(p) > room:
			batch.add('P', s.held(), p[:room])
			s.release()
			p = p[room:]
		default:
			s.hold(p)
			p = nil
		}
	}
	return nil
}

// flush writes a begun line as a partial one.
func (s *logStream) flush() {
	if s.size == 0 {
		return
	}
	batch := s.batch()
	batch.add('P', s.held(), nil)
	s.release()
	batch.end()
}

// close flushes; the file belongs to the log.
func (s *logStream) close() { s.flush() }

func (s *logStream) held() []byte {
	if s.pending == nil {
		return nil
	}
	return s.pending[:s.size]
}

func (s *logStream) hold(p []byte) {
	if s.pending == nil {
		s.pending = buffers.Get().(*[bufferSize]byte)
	}
	s.size += copy(s.pending[s.size:], p)
}

func (s *logStream) release() {
	if s.pending != nil {
		buffers.Put(s.pending)
	}
	s.pending, s.size = nil, 0
}

// logBatch collects lines for one write. They were read together, so they share a time stamp. It is part
// of its stream only to be allocated once.
type logBatch struct {
	log    *criLog
	buffer *[bufferSize]byte
	out    []byte
	prefix [64]byte // time stamp, stream; the tag follows
	length int      // of prefix
}

func (s *logStream) batch() *logBatch {
	b := &s.out
	b.log, b.buffer = s.log, buffers.Get().(*[bufferSize]byte)
	b.out = b.buffer[:0]
	b.length = len(append(s.now().AppendFormat(b.prefix[:0], time.RFC3339Nano), s.tag...))
	return b
}

func (b *logBatch) header() int { return b.length + len("F ") }

// add appends a line made of two pieces, writing out first what would not leave room for it.
func (b *logBatch) add(tag byte, head, tail []byte) {
	if len(b.out)+b.header()+len(head)+len(tail)+1 > bufferSize {
		b.write()
	}
	b.out = append(b.out, b.prefix[:b.length]...)
	b.out = append(b.out, tag, ' ')
	b.out = append(b.out, head...)
	b.out = append(b.out, tail...)
	b.out = append(b.out, '\n')
}

func (b *logBatch) write() {
	if len(b.out) > 0 {
		b.log.write(b.out, b.header())
		b.out = b.out[:0]
	}
}

func (b *logBatch) end() {
	b.write()
	buffers.Put(b.buffer)
	b.buffer, b.out = nil, nil
}
