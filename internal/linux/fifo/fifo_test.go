// SPDX-License-Identifier: Apache-2.0

package fifo

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func make1(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func ended(t *testing.T, f *os.File) bool {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var is bool
	if err := raw.Control(func(fd uintptr) { is = Ended(fd) }); err != nil {
		t.Fatal(err)
	}
	return is
}

func TestAReaderEndsWithItsLastWriterAndNotBeforeTheFirst(t *testing.T) {
	path := make1(t)
	r, err := Reader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if ended(t, r) {
		t.Error("ended before there was a writer")
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if ended(t, r) {
		t.Error("ended with a writer")
	}
	w.Close()
	if !ended(t, r) {
		t.Error("not ended after its only writer")
	}
}

func TestAWriterNeedsNoReaderAndItsEndIsSeen(t *testing.T) {
	path := make1(t)
	w, err := Writer(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Errorf("without a reader: %v", err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Close()
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 8)
	if n, err := r.Read(b); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if n, err := r.Read(b); n != 0 || err == nil {
		t.Errorf("after the writer: %d, %v", n, err)
	}
}

func TestOnlyAFIFOIsOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func(string) (*os.File, error){"reader": Reader, "writer": Writer} {
		if f, err := open(path); !errors.Is(err, ErrNotFIFO) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
		if _, err := open(path + "x"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of nothing: %v", name, err)
		}
	}
}
