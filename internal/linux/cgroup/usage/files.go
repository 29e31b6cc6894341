// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/kernfile"
)

// Files are the open files of one cgroup: reading one again costs a tenth of opening it. They do not keep the cgroup from being removed.
// Its methods may be called from any goroutine.
type Files struct {
	h    *cgroup.Hierarchies
	path string

	mu    sync.Mutex   // held while files are read: the kernel answers at once
	open  map[file]int // descriptors; none: there is no such file
	pages []string     // the sizes of huge pages that the cgroup counts, found with the first answer
	ended bool
}

// none stands for the descriptor of a file that does not exist.
const none = -1

// file names one file of a cgroup.
type file struct{ controller, name string }

// Of gives access to the cgroup at path, below each hierarchy's mount point. It opens nothing yet. Close it, or end it with Drop.
func Of(h *cgroup.Hierarchies, path string) *Files {
	return &Files{h: h, path: path, open: map[file]int{}}
}

// Path is the cgroup's, below the mount points.
func (f *Files) Path() string { return f.path }

// Close lets go of the files; they are opened again if the cgroup is read again. It is idempotent.
func (f *Files) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.close()
}

// Drop is Close for good: who reads afterwards, since it began before, keeps no file open.
func (f *Files) Drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.close()
}

// Preconditions: f.mu is held.
func (f *Files) close() {
	for _, fd := range f.open {
		if fd != none {
			unix.Close(fd)
		}
	}
	clear(f.open)
	f.pages = nil
}

// Read reads what lists of containers need. ErrGone: no such cgroup. Figures that the kernel does not give are left unknown.
func (f *Files) Read() (Usage, error) {
	u, _, err := f.read(nil)
	return u, err
}

// ReadAll is Read with what metrics need beside it, each file read once. Its files are kept open, too: to open two dozen of them for each answer took
// more than half of the time.
func (f *Files) ReadAll() (Usage, Detail, error) {
	var d Detail
	return f.read(&d)
}

func (f *Files) read(d *Detail) (Usage, Detail, error) {
	r := f.reader()
	defer r.end()
	var u Usage
	if f.h.Mode() == cgroup.Unified {
		r.v2(&u, d)
	} else {
		r.v1(&u, d)
	}
	if err := r.done(u.CPU.Known || u.Memory.Known); err != nil {
		return Usage{}, Detail{}, err
	}
	if d == nil {
		return u, Detail{}, nil
	}
	return u, *d, nil
}

// Tasks reads how many threads the cgroup has, with those below it.
func (f *Files) Tasks() (Counter, error) {
	r := f.reader()
	defer r.end()
	c := r.number("pids", "pids.current")
	return c, r.done(c.Known)
}

// reader reads the files of one cgroup for one answer, and remembers the first error that is not just a file that does not exist.
type reader struct {
	f   *Files
	buf *[]byte
	err error
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 8192); return &b }}

func (f *Files) reader() *reader {
	f.mu.Lock()
	return &reader{f: f, buf: buffers.Get().(*[]byte)}
}

func (r *reader) end() {
	if r.f.ended {
		r.f.close()
	}
	r.f.mu.Unlock()
	buffers.Put(r.buf)
}

func (r *reader) done(found bool) error {
	switch {
	case r.err != nil:
		return fmt.Errorf("read cgroup %s: %w", r.f.path, r.err)
	case !found:
		return fmt.Errorf("read cgroup %s: %w", r.f.path, ErrGone)
	}
	return nil
}

// maxFile bounds what is read of a file; memory.stat has some 2 KiB, io.stat 100 bytes a device.
const maxFile = 256 << 10

// read returns a file's content, valid until the next read; nil if there is no such file.
func (r *reader) read(controller, name string) []byte {
	if r.err != nil {
		return nil
	}
	fd, err := r.file(controller, name)
	if err == nil && fd != none {
		var data []byte
		if data, err = r.pread(fd, name); err == nil {
			return data
		}
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, syscall.ENODEV): // removed since it was opened
		r.err = ErrGone
	case errors.Is(err, syscall.EOPNOTSUPP): // pressure that is switched off, memory.max_usage of a root
	default:
		r.err = err
	}
	return nil
}

// file opens a file, or finds it open.
func (r *reader) file(controller, name string) (fd int, err error) {
	key := file{controller, name}
	if held, ok := r.f.open[key]; ok {
		return held, nil
	}
	dir, ok := r.f.h.Folder(controller, r.f.path)
	if !ok {
		return none, nil
	}
	fd, err = kernfile.Open(filepath.Join(dir, name), unix.O_NONBLOCK)
	switch {
	case err == nil:
		r.f.open[key] = fd
		return fd, nil
	case errors.Is(err, fs.ErrNotExist):
		if _, gone := os.Lstat(dir); gone == nil { // files of a cgroup do not appear later
			r.f.open[key] = none
		}
	}
	return none, err
}

// pread reads a file whole, with one call: the kernel renders it anew for each, so two would show two instants.
func (r *reader) pread(fd int, name string) ([]byte, error) {
	for {
		n, err := unix.Pread(fd, *r.buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n < len(*r.buf):
			return (*r.buf)[:n], nil
		case n >= maxFile:
			return nil, fmt.Errorf("%s: more than %d bytes", name, maxFile)
		}
		*r.buf = make([]byte, 2*len(*r.buf))
	}
}

// number is a file of one number.
func (r *reader) number(controller, name string) Counter {
	data := r.read(controller, name)
	if data == nil {
		return Counter{}
	}
	n, err := number(data)
	if err != nil {
		r.err = fmt.Errorf("%s: %w", name, err)
		return Counter{}
	}
	return known(n)
}

// psi reads the pressure files, which also the hybrid layout has for cgroups that are in its v2 hierarchy.
func (r *reader) psi(u *Usage) {
	u.CPUPressure = pressure(r.read("", "cpu.pressure"))
	u.MemoryPressure = pressure(r.read("", "memory.pressure"))
	u.IOPressure = pressure(r.read("", "io.pressure"))
}

func now() time.Time { return time.Now() }
