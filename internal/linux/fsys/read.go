// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ReadFile reads a regular file of the host of at most limit bytes: configurations and profiles, which whoever writes them can make large, or
// a fifo that would keep its reader waiting for ever. Links are followed. ErrTooLarge, fs.ErrNotExist.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: is a %s, want a file", path, strings.ToLower(info.Mode().Type().String()))
	}
	return readAll(f, "read "+path, limit)
}

func readAll(f *os.File, what string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes: %w", what, limit, ErrTooLarge)
	}
	return data, nil
}
