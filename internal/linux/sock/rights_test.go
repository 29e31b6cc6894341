// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func unixPair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	a, b := pair(t, "unix", filepath.Join(t.TempDir(), "s"))
	return a.(*net.UnixConn), b.(*net.UnixConn)
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestDescriptorsComeInOrderAndCloseOnExec(t *testing.T) {
	near, far := unixPair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := WriteRights(near, []byte("header and more"), int(r.Fd()), int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	rights := NewRights(far, 2)
	head := make([]byte, 6)
	if _, err := io.ReadFull(rights, head); err != nil || string(head) != "header" {
		t.Fatalf("%q, %v", head, err)
	}
	rest := make([]byte, 9)
	if _, err := io.ReadFull(rights, rest); err != nil || string(rest) != " and more" {
		t.Fatalf("%q, %v", rest, err)
	}
	fds := rights.Take()
	if len(fds) != 2 || len(rights.Take()) != 0 {
		t.Fatalf("descriptors %v", fds)
	}
	for _, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %d, %v", fd, flags, err)
		}
	}
	if _, err := unix.Write(fds[1], []byte("x")); err != nil { // the second is the writer
		t.Error(err)
	}
	CloseAll(fds)
	near.Close()
	if rest, err := io.ReadAll(rights); len(rest) != 0 || err != nil {
		t.Errorf("at the end: %q, %v", rest, err)
	}
}

// TestNoMoreDescriptorsThanExpectedStayOpen: a peer must not be able to fill the table of descriptors.
func TestNoMoreDescriptorsThanExpectedStayOpen(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	for name, messages := range map[string][][]int{
		"three":             {{fd, fd, fd}},
		"a hundred":         {make([]int, 100)},
		"one after another": {{fd, fd}, {fd}},
	} {
		near, far := unixPair(t)
		before := openFiles(t)
		rights := NewRights(far, 2)
		var err error
		for _, fds := range messages {
			for i := range fds {
				fds[i] = fd
			}
			if err := WriteRights(near, []byte("x"), fds...); err != nil {
				t.Fatal(err)
			}
			far.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, err = io.ReadFull(rights, make([]byte, 1))
		}
		if !errors.Is(err, ErrTooManyFiles) {
			t.Errorf("%s: %v", name, err)
		}
		if now := openFiles(t); now != before || len(rights.Take()) != 0 {
			t.Errorf("%s: %d descriptors, %d before", name, now, before)
		}
	}
}
