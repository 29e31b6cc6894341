// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/thread"
)

// Do runs fn inside the network namespace pinned at path. The namespace is that of fn's goroutine alone: what fn
// starts with the go statement runs in the daemon's namespace. Sockets that fn opens stay in the pod's.
func Do(path string, fn func() error) error { return in(Net, path, fn) }

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
