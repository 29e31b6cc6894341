// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const attribute = "security.selinux"

// maxDepth bounds the folders that are open at the same time.
const maxDepth = 1024

// ErrSystem: the path is one that other programs of the host need as it is.
var ErrSystem = errors.New("belongs to the host, and is not relabelled")

// system are the paths that opencontainers/selinux refuses, for the same reason: who mounts one of them with relabelling makes the host unusable.
var system = []string{"/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64", "/media", "/opt", "/proc", "/root",
	"/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log"}

// Relabel gives path, where that leads, and all below it a label. It goes by open files: whoever can write there cannot lead it out by a link. A file
// that vanishes meanwhile is no error. ErrSystem; errors.ErrUnsupported: the file system has no labels of its own.
func Relabel(path, to string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	real, err := os.Readlink(handle(f))
	if err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	if slices.Contains(system, real) {
		return fmt.Errorf("relabel %s: %s %w", path, real, ErrSystem)
	}
	if err := relabel(f, to, 0); err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}

// handle is the path of an open file that works for one opened with O_PATH, too, and for a link that was opened itself.
func handle(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// relabel comes to a folder itself last: who finds it relabelled finds all below it so.
func relabel(f *os.File, to string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: folders are more than %d deep", f.Name(), maxDepth)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := relabelBelow(f, to, depth); err != nil {
			return err
		}
	}
	return set(f, to)
}

func relabelBelow(dir *os.File, to string, depth int) error {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", dir.Name(), err)
	}
	list := os.NewFile(uintptr(fd), dir.Name())
	defer list.Close()
	for {
		names, err := list.Readdirnames(256)
		for _, name := range names {
			if err := relabelOne(dir, name, to, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func relabelOne(dir *os.File, name, to string, depth int) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s/%s: %w", dir.Name(), name, err)
	}
	f := os.NewFile(uintptr(fd), dir.Name()+"/"+name)
	defer f.Close()
	return relabel(f, to, depth)
}

// set leaves alone what has the label: read-only file systems may have it, too.
func set(f *os.File, to string) error {
	var now [256]byte
	if n, err := unix.Getxattr(handle(f), attribute, now[:]); err == nil && (string(now[:n]) == to || string(now[:n]) == to+"\x00") {
		return nil
	}
	if err := unix.Setxattr(handle(f), attribute, []byte(to), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}
