// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/thread"
)

// Do runs fn inside the network namespace pinned at path. The namespace is that of fn's goroutine alone: what fn
// starts with the go statement runs in the daemon's namespace. Sockets that fn opens stay in the pod's.
func Do(path string, fn func() error) error { return in(Net, path, fn) }

// Reset gives the pinned namespaces of a request the host name and the sysctls of IPC that it asks for once more: what was restored from a checkpoint has
// brought those along that it had before.
func Reset(r Request) error {
	if path := r.Pins[UTS]; path != "" && r.Hostname != "" {
		if err := in(UTS, path, func() error { return unix.Sethostname([]byte(r.Hostname)) }); err != nil {
			return fmt.Errorf("set hostname %q: %w", r.Hostname, err)
		}
	}
	again := maps.Clone(r.Sysctls)
	maps.DeleteFunc(again, func(name, _ string) bool { kind, _ := sysctlKind(name); return kind != IPC })
	if path := r.Pins[IPC]; path != "" && len(again) > 0 {
		return in(IPC, path, func() error { return writeSysctls(again) })
	}
	return nil
}

// in is Do for a namespace of any kind.
func in(kind Kind, path string, fn func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter %s namespace %s: %w", kind, path, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("enter %s namespace %s: %w", kind, path, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("enter %s namespace %s: %w", kind, path, ErrNotPinned)
	}
	return thread.Run(func() (bool, error) { return visit(fd, kind, path, fn) })
}

// visit tells whether the thread is back where it was, and so may serve others again.
func visit(fd int, kind Kind, path string, fn func() error) (home bool, err error) {
	back, err := unix.Open("/proc/thread-self/ns/"+string(kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true, fmt.Errorf("enter %s namespace %s: remember the own one: %w", kind, path, err)
	}
	defer unix.Close(back)
	if err := unix.Setns(fd, cloneFlags[kind]); err != nil {
		return true, fmt.Errorf("enter %s namespace %s: %w", kind, path, err)
	}
	err = fn()
	return unix.Setns(back, cloneFlags[kind]) == nil, err
}
