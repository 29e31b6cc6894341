// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

const (
	// poll is how often a file that is followed is looked at. Watching it would miss file systems that tell nothing.
	poll = 50 * time.Millisecond
	// ask is how many idle looks pass between two questions whether the container still runs.
	ask = 10
	// block is how much is read at a time.
	block = 64 << 10
)

// Options say what of a log is wanted.
type Options struct {
	// Tail is how many of the container's last lines are wanted; negative is all.
	Tail int64
	// Since leaves out what is older.
	Since time.Time
	// Follow goes on at the end of the file, through rotation, as long as Running says that more can come, Ended is not closed, and ctx
	// lasts. Running is asked now and then, for it may be a call to the runtime; either may be nil.
	Follow  bool
	Running func(context.Context) (bool, error)
	Ended   <-chan struct{}
}

// Read hands the log at path to emit, chunk by chunk. It returns how many lines of the file were left out because they are
// not in the CRI's format.
func Read(ctx context.Context, path string, o Options, emit func(Chunk) error) (skipped int64, err error) {
	r := &reader{path: path, o: o, p: newParser(o.Since, emit), buf: make([]byte, block)}
	if r.file, err = open(path); err != nil {
		return 0, err
	}
	defer func() {
		_ = r.file.Close() // it was only read
		if r.next != nil {
			_ = r.next.Close()
		}
	}()
	if err := r.skipToTail(); err != nil {
		return 0, err
	}
	err = r.run(ctx)
	r.p.cut()
	return r.p.skipped, err
}

func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0) // a pipe in its place must not block
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), f.Close())
	}
	return f, nil
}

type reader struct {
	path string
	o    Options
	p    *parser
	buf  []byte
	file *os.File
	at   int64
	next *os.File // what has taken the file's place
}

func (r *reader) skipToTail() error {
	if r.o.Tail < 0 {
		return nil
	}
	info, err := r.file.Stat()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if r.at, err = tailOffset(r.file, info.Size(), r.o.Tail); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	_, err = r.file.Seek(r.at, io.SeekStart)
	return err
}

func (r *reader) run(ctx context.Context) error {
	ended := false
	for idle := 1; ; idle++ {
		if err := r.drain(ctx, &idle); err != nil {
			return err
		}
		if !r.o.Follow || ended {
			return nil
		}
		if done, err := r.rotate(); err != nil {
			return err
		} else if done {
			continue
		}
		// What was written before it ended is read once more: the last turn.
		if idle%ask == 0 && r.o.Running != nil {
			more, err := r.o.Running(ctx)
			if err != nil {
				return err
			}
			ended = !more
			if ended {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.o.Ended:
			ended = true
		case <-time.After(poll):
		}
	}
}

// drain reads to the end of the file.
func (r *reader) drain(ctx context.Context, idle *int) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.file.Read(r.buf)
		r.at += int64(n)
		if n > 0 {
			*idle = 1
			if err := r.p.feed(r.buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || n == 0 && err == nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
}

// rotate sees whether another file has taken the place of the one being read. The old one is read to its end once more after
// the new one was seen: only then nobody writes to it. done tells that there is something to read at once.
func (r *reader) rotate() (done bool, err error) {
	if r.next != nil {
		_ = r.file.Close() // it was only read
		r.file, r.next, r.at = r.next, nil, 0
		r.p.cut()
		return true, nil
	}
	now, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) { // renamed, and not made anew yet
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	old, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	if os.SameFile(now, old) {
		if now.Size() >= r.at {
			return false, nil
		}
		r.at = 0 // truncated in place
		r.p.cut()
		_, err := r.file.Seek(0, io.SeekStart)
		return true, err
	}
	r.next, err = open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
