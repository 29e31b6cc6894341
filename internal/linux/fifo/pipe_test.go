// SPDX-License-Identifier: Apache-2.0

package fifo

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOnlyOurEndOfAPipeDoesNotBlock(t *testing.T) {
	for _, reads := range []bool{true, false} {
		ours, theirs, err := Pipe(reads)
		if err != nil {
			t.Fatal(err)
		}
		check := func(fd, want int) {
			mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			if flags, ferr := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || ferr != nil || flags&unix.FD_CLOEXEC == 0 || mode&unix.O_NONBLOCK != want {
				t.Errorf("reads %v: descriptor %d has mode %#x, flags %#x (%v, %v)", reads, fd, mode, flags, err, ferr)
			}
		}
		check(theirs, 0)
		conn, err := ours.SyscallConn() // Fd would change the mode
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Control(func(fd uintptr) { check(int(fd), unix.O_NONBLOCK) }); err != nil {
			t.Fatal(err)
		}
		ours.Close()
		unix.Close(theirs)
	}
	ours, theirs, err := Pipe(true)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer unix.Close(theirs)
	if err := ours.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Errorf("a read of nothing, with a deadline: %v", err)
	}
	if _, err := unix.Write(theirs, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := ours.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := ours.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
}
