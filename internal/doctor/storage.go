// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/berth-run/berth/internal/linux/verity"
)

// Shares of a file system that are free, in percent: below low people should act, below empty things break.
const low, empty = 15, 5

func (d *Doctor) checkStorage(_ context.Context, r report) {
	if d.Config.Images.FSVerity {
		if err := verity.Probe(d.Config.Root); errors.Is(err, errors.ErrUnsupported) {
			r.fail("set images.fs_verity = false, or enable it: tune2fs -O verity DEVICE, on a kernel with CONFIG_FS_VERITY", "images.fs_verity is set, and %s cannot: %v", d.Config.Root, err)
		} else if err == nil {
			r.ok("%s can have fs-verity", d.Config.Root)
		}
	}
	for _, dir := range []string{d.Config.Root, d.Config.State} {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			r.ok("%s is made when the daemon starts", dir)
			continue
		}
		if err != nil {
			r.fail("run this as root", "folder %s: %v", dir, err)
			continue
		}
		// With socket_group the state folder lets that group through.
		if mode := info.Mode().Perm(); mode&0o007 != 0 {
			r.add(Fail, "chmod 0700 "+dir, "everybody can enter %s (mode %04o): images, secrets in volumes and sockets are open to them", dir, mode).
				fix = func() error { return os.Chmod(dir, 0o700) }
		}
		d.checkSpace(r, dir)
	}
}

func (d *Doctor) checkSpace(r report, dir string) {
	var st syscall.Statfs_t
	if err := d.statfs(dir, &st); err != nil {
		r.fail("see that it is mounted", "file system of %s: %v", dir, err)
		return
	}
	judge := func(what string, free, all uint64) {
		if all == 0 {
			return // a file system without a limit
		}
		switch percent := free * 100 / all; {
		case percent < empty:
			r.fail("delete images (`berth rmi`) or other files, or give it more space", "%d %% of the %s of %s are left", percent, what, dir)
		case percent < low:
			r.warn("delete images (`berth rmi`) or other files, or give it more space", "%d %% of the %s of %s are left", percent, what, dir)
		default:
			r.ok("%d %% of the %s of %s are left", percent, what, dir)
		}
	}
	judge("space", st.Bavail, st.Blocks)
	judge("inodes", st.Ffree, st.Files)
	if flags := st.Flags; flags&syscall.MS_RDONLY != 0 {
		r.fail("mount it read-write; a file system that turned read-only by itself has errors: see the kernel's log", "%s is on a read-only file system", dir)
	}
}

// statfs is the kernel's, or a test's.
func (d *Doctor) statfs(dir string, st *syscall.Statfs_t) error {
	if d.fakeStatfs != nil {
		return d.fakeStatfs(dir, st)
	}
	return syscall.Statfs(dir, st)
}
