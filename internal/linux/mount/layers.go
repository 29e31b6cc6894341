// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// onMounts mounts an overlay whose layers are open. They are given one by one (Linux 6.7), so that no page of options bounds them.
func (o Overlay) onMounts(target string) error {
	fail := func(err error) error {
		return fmt.Errorf("mount overlay of %d layers on %s: %w", len(o.Mounts), target, err)
	}
	var ns *os.File
	if o.UserNS != "" {
		var err error
		if ns, err = os.Open(o.UserNS); err != nil {
			return fail(fmt.Errorf("map owners: %w", err))
		}
		defer ns.Close()
	}
	stack := stackOpen
	if o.Room != nil {
		stack = o.Room.stack
	}
	m, err := stack(o, ns)
	if err != nil {
		return fail(err)
	}
	defer m.Close()
	if err := attach(m, target); err != nil {
		return fail(fmt.Errorf("show: %w", err))
	}
	return nil
}

// stackOpen makes o of layers that are mounted nowhere (Linux 6.15).
func stackOpen(o Overlay, ns *os.File) (*os.File, error) {
	clones := make([]*os.File, len(o.Mounts))
	defer func() { closeFiles(clones) }()
	paths := make([]string, len(o.Mounts))
	for i, l := range o.Mounts {
		layer := l.file
		if ns != nil {
			var err error
			if clones[i], err = cloneLayer(int(l.file.Fd()), "", ns); err != nil {
				return nil, fmt.Errorf("%s: %w", l.file.Name(), err)
			}
			layer = clones[i]
		}
		paths[i] = fmt.Sprintf("/proc/self/fd/%d", layer.Fd())
	}
	return o.make(paths)
}

// TakesOpenLayers is nil where this kernel lays overlays over mounts that have no place (Linux 6.15), as it is tried with two folders. Where it does not, overlays
// want a Room.
func TakesOpenLayers(one, other string) error {
	clones := make([]*os.File, 2)
	defer func() { closeFiles(clones) }()
	paths := make([]string, 2)
	for i, dir := range []string{one, other} {
		var err error
		if clones[i], err = cloneLayer(unix.AT_FDCWD, dir, nil); err != nil {
			return err
		}
		paths[i] = fmt.Sprintf("/proc/self/fd/%d", clones[i].Fd())
	}
	m, err := Overlay{}.make(paths)
	if err != nil {
		return err
	}
	return m.Close()
}

// make makes the overlay of the folders at paths, topmost first. It is mounted nowhere.
func (o Overlay) make(paths []string) (*os.File, error) {
	fail := func(what string, err error) (*os.File, error) { return nil, fmt.Errorf("%s: %w", what, err) }
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("open file system", err)
	}
	defer unix.Close(fd)
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fd, key, value); err != nil {
				err = fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	set("source", "overlay")
	for _, p := range paths {
		set("lowerdir+", p)
	}
	if o.Label != "" {
		set("context", o.Label)
	}
	flags := 0
	if o.Upper != "" {
		set("upperdir", o.Upper)
		set("workdir", o.Work)
	} else {
		flags = unix.MOUNT_ATTR_RDONLY
	}
	for _, option := range o.Options {
		if key, value, ok := strings.Cut(option, "="); ok {
			set(key, value)
		} else if err == nil {
			err = unix.FsconfigSetFlag(fd, key)
		}
	}
	if err != nil {
		return fail("options", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fail("create", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, flags)
	if err != nil {
		return fail("mount", err)
	}
	return os.NewFile(uintptr(m), "overlay"), nil
}
