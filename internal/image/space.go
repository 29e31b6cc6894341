// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"syscall"
)

// spare is what a pull leaves of the disk to the rest of the node, in bytes.
const spare = 16 << 20

// outOfSpace says whether an error is the disk's being full, however it was found out.
func outOfSpace(err error) bool {
	return errors.Is(err, ErrNoSpace) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// admit refuses an image whose layers do not even fit before any of them is fetched. Unpacked they take no less than on the network, give or
// take little, so what passes here may still not fit: unpacking counts again, by what each file says that it takes. ErrNoSpace.
func (u *unpacking) admit(first int) error {
	var need uint64
	for _, l := range u.t.layers[first:] {
		need += uint64(max(l.Size, 0))
	}
	if need == 0 {
		return nil
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(u.s.cfg.Root, &st); err != nil {
		return fmt.Errorf("file system of %s: %w", u.s.cfg.Root, err)
	}
	if free := st.Bavail * uint64(st.Bsize); need > free || free-need < spare {
		return fmt.Errorf("layers take at least %d bytes, %s has %d left, of which %d are spared: remove images or make room: %w",
			need, u.s.cfg.Root, free, uint64(spare), ErrNoSpace)
	}
	return nil
}
