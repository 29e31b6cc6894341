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
)

// Files are the open files of one cgroup: reading one again costs a tenth of opening it. They do not keep the cgroup from being removed.
// Its methods may be called from any goroutine.
type Files struct {
	h    *cgroup.Hierarchies
	path string

	mu   sync.Mutex // held while files are read: the kernel answers at once
	open map[file]*os.File
	buf  []byte
}

// file names one file of a cgroup.
type file struct{ controller, name string }

// Of gives access to the cgroup at path, below each hierarchy's mount point. It opens nothing yet.
func Of(h *cgroup.Hierarchies, path string) *Files {
	return &Files{h: h, path: path, open: map[file]*os.File{}}
}

// Path is the cgroup's, below the mount points.
func (f *Files) Path() string { return f.path }

// Close lets go of the files; they are opened again if the cgroup is read again. It is idempotent.
func (f *Files) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, file := range f.open {
		if file != nil {
			file.Close()
		}
		delete(f.open, name)
	}
}

// Read reads what lists of containers need. ErrGone: no such cgroup. Figures that the kernel does not give are left unknown.
func (f *Files) Read() (Usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := reader{f: f, hold: true}
	var u Usage
	if f.h.Mode() == cgroup.Unified {
		r.v2(&u)
	} else {
		r.v1(&u)
	}
	if err := r.done(u.CPU.Known || u.Memory.Known); err != nil {
		return Usage{}, err
	}
	return u, nil
}

// ReadDetail reads what metrics need beside Read. Its files are kept open, too: to open two dozen of them for each answer took
// more than half of the time.
func (f *Files) ReadDetail() (Detail, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := reader{f: f, hold: true}
	var d Detail
	if f.h.Mode() == cgroup.Unified {
		r.v2Detail(&d)
	} else {
		r.v1Detail(&d)
	}
	if err := r.done(d.User.Known || d.Tasks.Known || d.Cache.Known); err != nil {
		return Detail{}, err
	}
	return d, nil
}

// Tasks reads how many threads the cgroup has, with those below it.
func (f *Files) Tasks() (Counter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := reader{f: f, hold: true}
	c := r.number("pids", "pids.current")
	return c, r.done(c.Known)
}

// reader reads the files of one cgroup for one answer, and remembers the first error that is not just a file that does not exist.
type reader struct {
	f    *Files
	hold bool
	err  error
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
	file, err := r.file(controller, name)
	if err == nil && file != nil {
		var data []byte
		data, err = r.f.pread(file)
		if !r.hold {
			file.Close()
		}
		if err == nil {
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

func (r *reader) file(controller, name string) (*os.File, error) {
	key := file{controller, name}
	if held, ok := r.f.open[key]; ok && r.hold {
		return held, nil // nil: it did not exist, and files of a cgroup do not appear later
	}
	dir, ok := r.f.h.Folder(controller, r.f.path)
	if !ok {
		return nil, nil
	}
	opened, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) && r.hold {
		if _, gone := os.Lstat(dir); gone == nil {
			r.f.open[key] = nil
		}
		return nil, err
	}
	if err == nil && r.hold {
		r.f.open[key] = opened
	}
	return opened, err
}

// pread reads a file whole, with one call: the kernel renders it anew for each, so two would show two instants.
func (f *Files) pread(file *os.File) ([]byte, error) {
	if f.buf == nil {
		f.buf = make([]byte, 8192)
	}
	for {
		n, err := unix.Pread(int(file.Fd()), f.buf, 0) // os.File.ReadAt would read on until it sees the end
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n < len(f.buf):
			return f.buf[:n], nil
		case n >= maxFile:
			return nil, fmt.Errorf("%s: more than %d bytes", file.Name(), maxFile)
		}
		f.buf = make([]byte, 2*len(f.buf))
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
