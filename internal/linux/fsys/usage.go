// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Usage is what a folder takes of its file system.
type Usage struct {
	Bytes  uint64 // allocated, which for sparse files is less than their length
	Inodes uint64
}

// ErrTooMany means that there are more files than the caller wants to look at.
var ErrTooMany = errors.New("too many files")

// readdirBatch bounds the names that are held of a folder at a time.
const readdirBatch = 256

// UsageOf counts what is in and below root, on root's own file system; a file with several links counts once. No link is followed, so
// what changes meanwhile leads nowhere else. limit bounds the files that are looked at (ErrTooMany), 0 does not.
func UsageOf(ctx context.Context, root string, limit int) (Usage, error) {
	dir, err := os.OpenFile(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, fmt.Errorf("count usage: %w", err)
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return Usage{}, fmt.Errorf("count usage of %s: %w", root, err)
	}
	c := counter{ctx: ctx, root: dir, device: st.Dev, limit: limit, linked: map[uint64]bool{}}
	c.add(&st)
	// Folders wait by their paths, opened one at a time: however deep a tree is, two descriptors are open.
	c.waiting = []string{"."}
	for len(c.waiting) > 0 {
		path := c.waiting[len(c.waiting)-1]
		c.waiting = c.waiting[:len(c.waiting)-1]
		if err := c.folder(path); err != nil {
			return c.Usage, fmt.Errorf("count usage of %s: %w", root, err)
		}
	}
	return c.Usage, nil
}

type counter struct {
	Usage
	ctx     context.Context
	root    *os.File
	device  uint64
	limit   int
	seen    int
	linked  map[uint64]bool // inodes of files with more than one name
	waiting []string
}

func (c *counter) folder(path string) error {
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(int(c.root.Fd()), path, how)
	switch {
	case err == unix.ENOENT, err == unix.ENOTDIR, err == unix.ELOOP, err == unix.EXDEV, err == unix.ENAMETOOLONG:
		return nil // changed meanwhile, or deeper than a path can say
	case err != nil:
		return fmt.Errorf("open %.200s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(readdirBatch)
		for _, name := range names {
			if err := c.entry(fd, path, name); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case c.ctx.Err() != nil:
			return context.Cause(c.ctx)
		}
	}
}

func (c *counter) entry(dir int, path, name string) error {
	if c.seen++; c.limit > 0 && c.seen > c.limit {
		return ErrTooMany
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, syscall.ENOENT) {
			return nil
		}
		return err
	}
	if st.Dev != c.device {
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		c.waiting = append(c.waiting, path+"/"+name)
	} else if st.Nlink > 1 {
		if c.linked[st.Ino] {
			return nil
		}
		c.linked[st.Ino] = true
	}
	c.add(&st)
	return nil
}

func (c *counter) add(st *unix.Stat_t) {
	c.Bytes += uint64(st.Blocks) * 512
	c.Inodes++
}
