// SPDX-License-Identifier: Apache-2.0

// Package syncfs is the door to syncfs(2), for package image: it makes a pulled image outlive a power cut.
package syncfs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Sync returns when all that was written to the file system of dir is on disk, whoever wrote it.
func Sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync file system: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync file system of %s: %w", dir, err)
	}
	return nil
}

// Begin has the disk begin to write n bytes of a file from offset at, without waiting for it to have them: what is synced later is then mostly
// there. errors.ErrUnsupported: the file system cannot.
func Begin(f *os.File, at, n int64) error {
	if err := unix.SyncFileRange(int(f.Fd()), at, n, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return fmt.Errorf("begin to write %s: %w", f.Name(), err)
	}
	return nil
}
