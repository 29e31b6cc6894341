// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Source is what a bind mount is made from, held open: whatever happens to its path, the answers are about the same file.
type Source struct{ file *os.File }

// OpenSource opens path, links followed, without reading from it: a device or a fifo is only held. fs.ErrNotExist.
func OpenSource(path string) (*Source, error) {
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Source{f}, nil
}

// Close lets go of it.
func (s *Source) Close() error { return s.file.Close() }

// sourceFlags are the flags of a mount that a bind mount of it has, too, unless somebody drops them.
var sourceFlags = []struct {
	bit  int64
	name string
}{{unix.ST_RDONLY, "ro"}, {unix.ST_NOSUID, "nosuid"}, {unix.ST_NODEV, "nodev"}, {unix.ST_NOEXEC, "noexec"}}

// Flags are those of "ro", "nosuid", "nodev" and "noexec" that the mount has on which the source lies.
func (s *Source) Flags() ([]string, error) {
	var st unix.Statfs_t
	for {
		err := unix.Fstatfs(int(s.file.Fd()), &st)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return nil, fmt.Errorf("statfs %s: %w", s.file.Name(), err)
		}
	}
	var flags []string
	for _, f := range sourceFlags {
		if st.Flags&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	return flags, nil
}

// Propagation tells what the mount on which the source lies passes on and takes: shared mounts are heard of by their peers, slave mounts hear of
// their master's. Point is where it is mounted.
func (s *Source) Propagation() (point string, shared, slave bool, err error) {
	id, err := s.mountID()
	if err != nil {
		return "", false, false, fmt.Errorf("mount of %s: %w", s.file.Name(), err)
	}
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.ID != id, m.ID == id })
	if err != nil {
		return "", false, false, fmt.Errorf("mount of %s: %w", s.file.Name(), err)
	}
	if len(found) == 0 {
		return "", false, false, fmt.Errorf("mount of %s: number %d is not in this mount namespace", s.file.Name(), id)
	}
	for _, o := range strings.Fields(found[0].Optional) {
		shared = shared || strings.HasPrefix(o, "shared:")
		slave = slave || strings.HasPrefix(o, "master:")
	}
	return found[0].Mountpoint, shared, slave, nil
}

// mountID is the number that /proc/self/mountinfo has for the mount.
func (s *Source) mountID() (int, error) {
	f, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(int(s.file.Fd())))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.Join(errors.New("the kernel does not tell its number"), lines.Err())
}
