// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	for _, folder := range []struct {
		path string
		mode os.FileMode // the daemon's: others may pass through the state folder, as roots of user namespaces have to, and not look into it
	}{{d.Config.Root, 0o700}, {d.Config.State, 0o711}} {
		dir := folder.path
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			r.ok("%s is made when the daemon starts", dir)
			d.checkSpace(r, nearest(dir))
			continue
		}
		if err != nil {
			r.fail("run this as root", "folder %s: %v", dir, err)
			continue
		}
		if mode := info.Mode().Perm(); mode&^folder.mode&0o007 != 0 {
			r.add(Fail, fmt.Sprintf("chmod %04o %s", folder.mode, dir), "%s is open to everybody (mode %04o): images, secrets in volumes and sockets are, too", dir, mode).
				fix = func() error { return os.Chmod(dir, folder.mode) }
		}
		d.checkSpace(r, dir)
	}
}

// nearest is the folder in which one that is not there yet, with those above it, is going to be made.
func nearest(dir string) string {
	for {
		dir = filepath.Dir(dir)
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			return dir
		}
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
