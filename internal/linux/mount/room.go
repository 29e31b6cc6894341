// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/thread"
)

// Room is a mount namespace of this process's own, in which layers are mounted and laid over each other: kernels before Linux 6.15 want all that an overlay
// is made of to have a place in the mount namespace of who makes it. Nothing of it is to be seen anywhere else, and however the process ends, the
// namespace goes with it; overlays that were made there stay. Its methods may be called from any goroutine.
type Room struct {
	ns   *os.File
	last atomic.Uint64 // place that was given
}

// OpenRoom makes a room in which nothing is but the folders that are shown, at their own paths and without what is mounted below them: upper folders lie in one
// of these.
func OpenRoom(shown ...string) (*Room, error) {
	// What is outermost comes first.
	shown = slices.SortedFunc(slices.Values(shown), func(a, b string) int { return cmp.Compare(len(a), len(b)) })
	var clones []*os.File
	defer func() { closeFiles(clones) }()
	for _, dir := range shown {
		c, err := cloneLayer(unix.AT_FDCWD, dir, nil)
		if err != nil {
			return nil, fmt.Errorf("make mount namespace: show %s: %w", dir, err)
		}
		clones = append(clones, c)
	}
	r := &Room{}
	err := thread.Run(func() (bool, error) { return false, r.build(shown, clones) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make mount namespace: %w", err), r.Close())
	}
	return r, nil
}

// build makes the namespace the calling thread's, for ever. The root that the thread had goes from it, or it would keep every file system of this machine mounted.
func (r *Room) build(shown []string, clones []*os.File) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	var err error
	if r.ns, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	const root = "/proc" // any folder will do
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"keep its mounts apart", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount tmpfs", func() error {
			return unix.Mount("layers", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=64k")
		}},
		{"enter its root", func() error { return unix.Chdir(root) }},
		{"change the root", func() error { return unix.PivotRoot(".", ".") }}, // which no root that is an initial RAM disk allows
		{"leave the former root", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
		{"enter its root", func() error { return unix.Chdir("/") }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	for i, dir := range shown {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := attach(clones[i], dir); err != nil {
			return fmt.Errorf("show %s: %w", dir, err)
		}
	}
	return nil
}

// Close gives the room up, with the layers in it that are not closed. It is idempotent.
func (r *Room) Close() error {
	if r == nil || r.ns == nil {
		return nil
	}
	if err := r.ns.Close(); !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

// do runs fn in the room.
func (r *Room) do(fn func() error) error {
	return thread.Run(func() (bool, error) {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // threads that share a root share a namespace
			return false, fmt.Errorf("enter mount namespace: %w", err)
		}
		if err := unix.Setns(int(r.ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return false, fmt.Errorf("enter mount namespace: %w", err)
		}
		return false, fn()
	})
}

// take gives a mount that is nowhere a place in the room.
func (r *Room) take(m *os.File) (string, error) {
	place := "/layer" + strconv.FormatUint(r.last.Add(1), 10)
	return place, r.do(func() error {
		if err := os.Mkdir(place, 0o700); err != nil {
			return err
		}
		if err := attach(m, place); err != nil {
			return errors.Join(fmt.Errorf("give it a place: %w", err), os.Remove(place))
		}
		return nil
	})
}

// drop unmounts what take has mounted.
func (r *Room) drop(place string) error {
	return r.do(func() error {
		if err := Detach(place); err != nil {
			return err
		}
		return os.Remove(place)
	})
}

// stack makes o in the room. What has no place there gets one in a copy of the namespace that goes with the thread.
func (r *Room) stack(o Overlay, ns *os.File) (m *os.File, err error) {
	clones := make([]*os.File, len(o.Mounts))
	defer func() { closeFiles(clones) }()
	for i, l := range o.Mounts {
		if l.place == "" { // only who is in the mount's own namespace may copy it
			if clones[i], err = cloneLayer(int(l.file.Fd()), "", ns); err != nil {
				return nil, fmt.Errorf("%s: %w", l.file.Name(), err)
			}
		}
	}
	err = r.do(func() error {
		paths, err := o.places(clones, ns)
		if err == nil {
			m, err = o.make(paths)
		}
		return err
	})
	return m, err
}

// places are where the layers are in the calling thread's namespace, which leaves the room where some have yet to get their place: clones of those are given, or
// made for other owners.
func (o Overlay) places(clones []*os.File, ns *os.File) ([]string, error) {
	if ns != nil || slices.ContainsFunc(clones, func(c *os.File) bool { return c != nil }) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return nil, fmt.Errorf("copy mount namespace: %w", err)
		}
	}
	paths := make([]string, len(o.Mounts))
	for i, l := range o.Mounts {
		var err error
		if paths[i] = l.place; ns != nil && clones[i] == nil {
			if clones[i], err = cloneLayer(unix.AT_FDCWD, l.place, ns); err != nil {
				return nil, fmt.Errorf("%s: %w", l.file.Name(), err)
			}
		}
		if clones[i] == nil {
			continue
		}
		paths[i] = "/copy" + strconv.Itoa(i)
		if err = os.Mkdir(paths[i], 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			err = attach(clones[i], paths[i])
		}
		if err != nil {
			return nil, fmt.Errorf("%s: give it a place: %w", l.file.Name(), err)
		}
	}
	return paths, nil
}

func closeFiles(all []*os.File) {
	for _, f := range all {
		if f != nil {
			f.Close()
		}
	}
}
