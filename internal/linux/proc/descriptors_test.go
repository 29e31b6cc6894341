// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestDescriptorsAreCounted(t *testing.T) {
	files, sockets, err := Descriptors(os.Getpid(), 1000)
	if err != nil || files == 0 {
		t.Fatal(files, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	now, nowSockets, err := Descriptors(os.Getpid(), 1000)
	if err != nil || now < files+2 || nowSockets != sockets+1 {
		t.Errorf("got %d files, %d sockets, %v; before there were %d, %d", now, nowSockets, err, files, sockets)
	}
	if n, _, err := Descriptors(os.Getpid(), 2); n != 2 || err != nil {
		t.Errorf("looked at %d, %v", n, err)
	}
	if _, _, err := Descriptors(1<<30, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestMaxOpenFilesIsTheSoftLimit(t *testing.T) {
	var want syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &want); err != nil {
		t.Fatal(err)
	}
	if got, err := MaxOpenFiles(os.Getpid()); err != nil || got != want.Cur {
		t.Errorf("got %d, %v, want %d", got, err, want.Cur)
	}
}

func TestReservedDescriptorsAreFreeAndThereIsRoomForThem(t *testing.T) {
	size := func() (n int) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(status), "FDSize:")
		if _, err := fmt.Sscan(rest, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	want := 2 * size()
	before, _, err := Descriptors(os.Getpid(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := ReserveDescriptors(want); err != nil {
		t.Fatal(err)
	}
	if got := size(); got < want {
		t.Errorf("room for %d descriptors, want %d", got, want)
	}
	if after, _, err := Descriptors(os.Getpid(), 1<<20); err != nil || after != before {
		t.Errorf("%d open before, %d after, %v", before, after, err)
	}
	if err := ReserveDescriptors(1 << 30); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("more than the limit: %v", err)
	}
}
