// SPDX-License-Identifier: Apache-2.0

// Package verity is fs-verity: the kernel checks each block of a file when it is read, and nobody can write to the file any more. The image store uses it.
package verity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface, linux/fsverity.h.
const (
	ioctlEnable  = 0x40806685
	ioctlMeasure = 0xc0046686
	sha256       = 1
	maxBlock     = 4096
	maxDigest    = 64
)

type enableArg struct {
	version, algorithm, blockSize, saltSize uint32
	salt                                    uint64
	sigSize, reserved1                      uint32
	sig                                     uint64
	reserved2                               [11]uint64
}

type measureArg struct {
	algorithm, size uint16
	digest          [maxDigest]byte
}

// Enable makes the kernel guard a regular file, which nobody may have open for writing (ETXTBSY). What it has been told to guard already stays so. It reads all of
// it. errors.ErrUnsupported: neither this kernel nor every file system can.
func Enable(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("enable fs-verity: %w", err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("enable fs-verity of %s: %w", file, err)
	}
	// No more than the file system's own, of which small ones have less than a page.
	arg := enableArg{version: 1, algorithm: sha256, blockSize: uint32(min(st.Bsize, maxBlock))}
	for {
		err = ioctl(f, ioctlEnable, unsafe.Pointer(&arg))
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("enable fs-verity of %s: %w", file, err)
	}
	return nil
}

// ErrNone: the kernel does not guard the file.
var ErrNone = errors.New("fs-verity is not enabled")

// Measure is the digest that all of the file must have, "sha256:…". It reads nothing of it. ErrNone; errors.ErrUnsupported.
func Measure(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("measure fs-verity: %w", err)
	}
	defer f.Close()
	arg := measureArg{size: maxDigest}
	switch err := ioctl(f, ioctlMeasure, unsafe.Pointer(&arg)); {
	case errors.Is(err, unix.ENODATA):
		return "", fmt.Errorf("%s: %w", file, ErrNone)
	case err != nil:
		return "", fmt.Errorf("measure fs-verity of %s: %w", file, err)
	case arg.algorithm != sha256 || int(arg.size) > maxDigest:
		return "", fmt.Errorf("measure fs-verity of %s: algorithm %d is not SHA-256", file, arg.algorithm)
	}
	return "sha256:" + hex.EncodeToString(arg.digest[:arg.size]), nil
}

// Probe is nil where files of a folder can be guarded. errors.ErrUnsupported: the kernel or the file system cannot.
func Probe(dir string) error {
	file := filepath.Join(dir, ".fs-verity-probe")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		return fmt.Errorf("try fs-verity: %w", err)
	}
	defer os.Remove(file)
	if err := Enable(file); err != nil {
		return err
	}
	_, err := Measure(file)
	return err
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	runtime.KeepAlive(f)
	switch errno {
	case 0:
		return nil
	case unix.ENOTTY, unix.EOPNOTSUPP: // the file system knows nothing of it; the kernel, or this file system, was made without it
		return fmt.Errorf("%w (%w): it takes a kernel with CONFIG_FS_VERITY and ext4 with the feature verity (tune2fs -O verity), btrfs or f2fs", errors.ErrUnsupported, errno)
	}
	return errno
}
