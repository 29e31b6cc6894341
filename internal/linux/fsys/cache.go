// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DropCache has the kernel forget what it keeps in memory of a file, so that the next read comes from the disk. What is not written yet stays.
func DropCache(f *os.File) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop %s from the page cache: %w", f.Name(), err)
	}
	return nil
}
