// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	goerofs "github.com/erofs/go-erofs"
)

// Below is a layer that is there already, for those above it to inherit from. Close it.
type Below interface {
	find(name string) (attrs, finding, error)
	Close() error
}

type finding int

const (
	absent  finding = iota
	isOther         // replaced or hidden there: nothing further below counts
	isFolder
)

type folderBelow struct{ *os.Root }

// OpenFolder opens a layer that Extract has made.
func OpenFolder(dir string) (Below, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open layer: %w", err)
	}
	return folderBelow{r}, nil
}

func (f folderBelow) find(name string) (attrs, finding, error) {
	info, err := f.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return attrs{}, absent, nil
	}
	if err == nil && info.IsDir() {
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return attrs{}, absent, fmt.Errorf("stat %s: %T", name, info.Sys())
		}
		return attrs{int(st.Uid), int(st.Gid), st.Mode, info.ModTime()}, isFolder, nil
	}
	return attrs{}, isOther, nil // also of a link out of the layer: no honest folder of that name
}

type blobBelow struct {
	fs.FS
	file *os.File
}

// OpenBlob opens a layer that Convert has made. ErrCorrupt.
func OpenBlob(file string) (Below, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open layer: %w", err)
	}
	img, err := goerofs.Open(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open layer %s: %w: %w", file, ErrCorrupt, err), f.Close())
	}
	return blobBelow{img, f}, nil
}

func (b blobBelow) Close() error { return b.file.Close() }

func (b blobBelow) find(name string) (_ attrs, _ finding, err error) {
	defer func() {
		if p := recover(); p != nil { // the file was damaged since it was made
			err = fmt.Errorf("%w: %v", ErrCorrupt, p)
		}
	}()
	info, err := fs.Lstat(b.FS, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return attrs{}, absent, nil
	case err != nil, !info.IsDir():
		return attrs{}, isOther, nil
	}
	st, ok := info.Sys().(*goerofs.Stat)
	if !ok {
		return attrs{}, absent, fmt.Errorf("stat %s: %T", name, info.Sys())
	}
	return attrs{int(st.UID), int(st.GID), unixMode(st.Mode), info.ModTime()}, isFolder, nil
}

// special are the permissions that Go keeps elsewhere than stat(2).
var special = map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000}

func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, unix := range special {
		if m&bit != 0 {
			mode |= unix
		}
	}
	return mode
}

func fileMode(unix uint32) fs.FileMode {
	mode := fs.FileMode(unix & 0o777)
	for bit, u := range special {
		if unix&u != 0 {
			mode |= bit
		}
	}
	return mode
}
