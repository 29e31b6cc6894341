// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// PunchHole gives n bytes of a file back to the disk; they read as zeros afterwards, and the file keeps its length. errors.ErrUnsupported: the
// file system cannot.
func PunchHole(f *os.File, at, n int64) error {
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n); err != nil {
		return fmt.Errorf("punch a hole into %s: %w", f.Name(), err)
	}
	return nil
}
