// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"syscall"
)

// File systems on which no overlay can have its writable layer, by the magic number of statfs(2).
var noUpper = map[int64]string{0x794c7630: "overlayfs", 0x6969: "NFS", 0xff534d42: "CIFS", 0xfe534d42: "SMB", 0x4d44: "FAT", 0x9660: "a CD's", 0xe0f5e1e2: "EROFS"}

// fileBackedEROFS is the first kernel that mounts EROFS from a file.
var fileBackedEROFS = [2]int{6, 12}

// checkImages looks at what keeps layers: the form that is configured, the file system below, and remote snapshotters.
func (d *Doctor) checkImages(ctx context.Context, r report) {
	var st syscall.Statfs_t
	if err := d.statfs(d.Config.Root, &st); err == nil && noUpper[st.Type] != "" { // an error: checkStorage tells
		r.fail("move root to a file system such as ext4 or xfs", "%s lies on %s, on which the kernel mounts no container's root file system",
			d.Config.Root, noUpper[st.Type])
	}
	form := d.Config.Images.Snapshotter
	erofs := d.hasEROFS()
	switch {
	case form == "erofs" && !erofs:
		r.fail(`set images.snapshotter = "auto", or use a kernel of 6.12 or later with EROFS (modprobe erofs)`, "images.snapshotter is erofs, and the kernel mounts no EROFS from files")
	case form == "erofs", form == "auto" && erofs:
		r.ok("layers are kept as EROFS files")
	case form == "auto", form == "overlayfs":
		r.ok("layers are kept as folders")
	case d.Config.Snapshotters[form] == nil:
		r.fail("add [snapshotters."+form+"], or change images.snapshotter", "images.snapshotter %s is none that is configured", form)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Config.Snapshotters)) {
		d.askSnapshotter(ctx, r, name, d.Config.Snapshotters[name].Address)
	}
}

func (d *Doctor) hasEROFS() bool {
	release, err := d.read("/proc/sys/kernel/osrelease")
	if err != nil {
		return false
	}
	has, err := d.mounts(release, "erofs")
	v := kernelVersion(release)
	return err == nil && has && slices.Compare(v[:], fileBackedEROFS[:]) >= 0
}

// askSnapshotter tells whether somebody listens.
func (d *Doctor) askSnapshotter(ctx context.Context, r report, name, address string) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		r.fail("start the snapshotter's daemon, or correct [snapshotters."+name+"] address: images that it has cannot be used without", "snapshotter %s: %v", name, err)
		return
	}
	conn.Close()
	r.ok("snapshotter %s listens at %s", name, address)
}
