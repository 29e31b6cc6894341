// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// CreateInRoot makes the file path, whose folder exists, and opens it for writing. What is there already is an error, a link most of
// all: writing through it would let an image choose the file (runc CVE-2024-45310).
func CreateInRoot(root, file string, perm os.FileMode) (*os.File, error) {
	dir, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := resolve(dir, file, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, uint64(perm.Perm()))
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(perm.Perm()); err != nil { // the umask is not to decide
		f.Close()
		return nil, fmt.Errorf("create %s in %s: %w", file, root, err)
	}
	return f, nil
}

// MkdirAllInRoot makes the folder and those above it, as a process with that root would. Folders that are there keep their mode; new ones
// get perm whatever the umask.
func MkdirAllInRoot(root, folder string, perm os.FileMode) error {
	done := ""
	for name := range strings.SplitSeq(path.Clean("/" + folder)[1:], "/") {
		if name == "" {
			return nil // the root itself
		}
		done += "/" + name
		dir, err := enter(root, done, perm)
		if err != nil {
			return err
		}
		dir.Close()
	}
	return nil
}

// enter opens the folder at path, after making it where it is missing. The whole path is resolved from the root each time: an
// absolute link on the way starts there again.
func enter(root, folder string, perm os.FileMode) (*os.File, error) {
	dir, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	const open = unix.O_PATH | unix.O_DIRECTORY
	next, err := resolve(dir, folder, open, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return next, err
	}
	above, err := resolve(dir, path.Dir(folder), open, 0)
	if err != nil {
		return nil, err
	}
	defer above.Close()
	name := path.Base(folder)
	if err := unix.Mkdirat(int(above.Fd()), name, uint32(perm.Perm())); err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("make folder %s in %s: %w", folder, root, err)
	}
	if next, err = resolve(above, name, open|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err // a dangling link ends here: what it names is not made
	}
	if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", next.Fd()), perm.Perm()); err != nil {
		next.Close()
		return nil, fmt.Errorf("make folder %s in %s: %w", folder, root, err)
	}
	return next, nil
}

// RemoveAllInRoot removes path and all below it; a link is removed, not followed. What does not exist is removed already.
func RemoveAllInRoot(root, target string) error {
	clean := path.Clean("/" + target)
	if clean == "/" {
		return fmt.Errorf("remove %q in %s: is the root itself", target, root)
	}
	dir, err := openRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	above, err := resolve(dir, path.Dir(clean), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer above.Close()
	beneath, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", above.Fd()))
	if err != nil {
		return fmt.Errorf("remove %s in %s: %w", target, root, err)
	}
	defer beneath.Close()
	if err := beneath.RemoveAll(path.Base(clean)); err != nil {
		return fmt.Errorf("remove %s in %s: %w", target, root, err)
	}
	return nil
}

// Write is one file to be written whole or not at all.
type Write struct {
	Path string
	Data []byte
	Perm os.FileMode
	// Sync also makes it outlive a power cut, for about a disk's write latency.
	Sync bool
	// Fill, if set, writes the content, in place of Data.
	Fill func(w io.Writer) error
	// Temp is where the file is until it is whole, beside its place, and replaces what is there; empty: a path that is free. Who knows it can remove what
	// a crash has left.
	Temp string
}

// Atomic writes the file beside its place and renames it there: whoever reads sees the old content or the new. Path is trusted.
func (w Write) Atomic() error {
	f, err := w.create()
	if err != nil {
		return fmt.Errorf("write %s: %w", w.Path, err)
	}
	if err = w.fill(f); err == nil {
		err = os.Rename(f.Name(), w.Path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", w.Path, errors.Join(err, os.Remove(f.Name())))
	}
	if !w.Sync {
		return nil
	}
	if err := SyncFolder(filepath.Dir(w.Path)); err != nil {
		return fmt.Errorf("write %s: %w", w.Path, err)
	}
	return nil
}

// create makes the file that is to be filled, for nobody else yet.
func (w Write) create() (*os.File, error) {
	if w.Temp == "" {
		return os.CreateTemp(filepath.Dir(w.Path), "."+filepath.Base(w.Path)+".new-*") // O_EXCL and 0600
	}
	if err := os.Remove(w.Temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(w.Temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// fill writes and closes f.
func (w Write) fill(f *os.File) error {
	err := f.Chmod(w.Perm.Perm()) // the umask is not to decide
	switch {
	case err != nil:
	case w.Fill != nil:
		err = w.Fill(f)
	default:
		_, err = f.Write(w.Data)
	}
	if err == nil && w.Sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// SyncFolder has the names of a folder outlive a power cut.
func SyncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
