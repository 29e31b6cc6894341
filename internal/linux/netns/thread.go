// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/thread"
)

// Do runs fn inside the network namespace pinned at path. The namespace is that of fn's goroutine alone: what fn
// starts with the go statement runs in the daemon's namespace. Sockets that fn opens stay in the pod's.
func Do(path string, fn func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("enter network namespace %s: %w", path, ErrNotPinned)
	}
	return thread.Run(func() (bool, error) { return visit(fd, path, fn) })
}

// visit tells whether the thread is back where it was, and so may serve others again.
func visit(fd int, path string, fn func() error) (home bool, err error) {
	back, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true, fmt.Errorf("enter network namespace %s: remember the own one: %w", path, err)
	}
	defer unix.Close(back)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	err = fn()
	return unix.Setns(back, unix.CLONE_NEWNET) == nil, err
}
