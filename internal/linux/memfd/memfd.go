// SPDX-License-Identifier: Apache-2.0

// Package memfd makes files without a name, to hand data to a child process (as /proc/self/fd/N) or
// to take its output, where a pipe would need somebody at the other end and a file a place and a clean-up.
package memfd

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// New returns an anonymous file that holds data, positioned at its start. The name is seen only in /proc.
func New(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memfd %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), "memfd:"+name)
	if len(data) == 0 {
		return file, nil
	}
	if _, err := file.WriteAt(data, 0); err != nil {
		file.Close()
		return nil, fmt.Errorf("fill memfd %s: %w", name, err)
	}
	return file, nil
}
