// SPDX-License-Identifier: Apache-2.0

package kernfile

import (
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpen(t *testing.T) {
	for path, flags := range map[string]int{"/proc/self/stat": 0, "/proc/self": unix.O_DIRECTORY} {
		fd, err := Open(path, flags)
		if err != nil {
			t.Fatal(err)
		}
		if set, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || set&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s would be passed on: %d, %v", path, set, err)
		}
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
	var at *fs.PathError
	if _, err := Open("/proc/self/none", 0); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &at) || at.Path != "/proc/self/none" {
		t.Errorf("no such file: %v", err)
	}
	if _, err := Open("/proc/self/stat", unix.O_DIRECTORY); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("no folder: %v", err)
	}
}
