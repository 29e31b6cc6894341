// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// recipe is all that decides what the guest's disk holds. Its hash names the cached image.
type recipe struct {
	Suite, Mirror string
	Packages      []string
	// Remove are globs that are taken away, Mask are units that never start, Files are written.
	Remove, Mask []string
	Files        map[string]string
	// Size is the disk's, in bytes; holes cost nothing.
	Size int64
	// Features are mke2fs's.
	Features string
}

// debian is a Debian that boots as fast as an emulated processor allows: nothing starts that the tests do not need. AppArmor's
// own profiles are removed, since compiling them takes longer than all the rest of the boot; its parser and abstractions stay.
var debian = recipe{
	Suite: "trixie", Mirror: "http://deb.debian.org/debian",
	Packages: []string{
		"systemd-sysv", "dbus", "udev", "kmod", "iproute2", "iptables", "busybox-static", "apparmor", "criu", "crun",
		"linux-image-cloud-amd64", "initramfs-tools", "procps", "e2fsprogs", "sudo", // the CRI validation suite loads AppArmor profiles through sudo
	},
	Remove: []string{"/var/cache/apt/*", "/var/lib/apt/lists/*", "/etc/apparmor.d/[a-zA-Z0-9]*", "/usr/share/doc/*", "/usr/share/locale/*"},
	Mask: []string{
		"tmp.mount", // tests want a disk, not memory
		"getty.target", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
		"e2scrub_reap.service", "apparmor.service", "systemd-logind.service", "systemd-user-sessions.service", "systemd-pstore.service",
		"systemd-timesyncd.service",
	},
	Files: map[string]string{
		"/etc/hostname":                "vm\n",
		"/etc/hosts":                   "127.0.0.1 localhost vm\n::1 localhost\n",
		"/etc/resolv.conf":             "nameserver 10.0.2.3\n",
		"/etc/fstab":                   "/dev/vda / ext4 defaults,noatime 0 0\n/dev/vdb /berth ext4 defaults,noatime 0 0\n",
		"/etc/systemd/system/" + agent: agentUnit,
		"/etc/modules-load.d/vm.conf":  "overlay\nbr_netfilter\n",
	},
	Size: 6 << 30, Features: "^has_journal",
}

const agent = "berth-vm.service"

// agentUnit runs the plan. Its processes may be killed for want of memory, and it may start as many as it likes.
const agentUnit = `[Unit]
Description=Tests of Berth
RequiresMountsFor=/berth
[Service]
Type=exec
ExecStart=/berth/vm guest
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=1048576
KillMode=control-group
TimeoutStopSec=10
StandardOutput=journal+console
StandardError=journal+console
[Install]
WantedBy=multi-user.target
`

// baseFiles are a kernel with its initial RAM disk and a disk that it boots to systemd.
type baseFiles struct{ kernel, initrd, disk string }

// baseImage returns the cached machine, and makes it if there is none of this recipe. Those of other recipes are removed.
func baseImage(ctx context.Context, cache string) (baseFiles, error) {
	text, err := json.Marshal(debian)
	if err != nil {
		return baseFiles{}, err
	}
	dir := filepath.Join(cache, fmt.Sprintf("base-%x", sha256.Sum256(text))[:21])
	files := baseFiles{dir + "/vmlinuz", dir + "/initrd", dir + "/disk"}
	if _, err := os.Stat(files.disk); err == nil {
		return files, nil
	}
	old, err := filepath.Glob(cache + "/base-*")
	if err != nil {
		return files, err
	}
	for _, path := range old { // also what a run that was cut off has left
		if err := os.RemoveAll(path); err != nil {
			return files, fmt.Errorf("remove old machine: %w", err)
		}
	}
	fmt.Printf("making the machine (Debian %s, once): %s\n", debian.Suite, dir)
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	if err := debian.build(ctx, dir+".new"); err != nil {
		return files, errors.Join(fmt.Errorf("make the machine: %w", err), os.RemoveAll(dir+".new"))
	}
	return files, os.Rename(dir+".new", dir)
}

// build makes kernel, initrd and disk in a new folder.
func (r recipe) build(ctx context.Context, dir string) error {
	tree := dir + "/tree"
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	err := command(ctx, "debootstrap", "--variant=minbase", "--include="+strings.Join(r.Packages, ","), r.Suite, tree, r.Mirror)
	if err != nil {
		return err
	}
	for target, pattern := range map[string]string{"vmlinuz": "/boot/vmlinuz-*", "initrd": "/boot/initrd.img-*"} {
		found, err := filepath.Glob(tree + pattern)
		if err != nil || len(found) != 1 {
			return fmt.Errorf("want one %s, got %v: %w", pattern, found, err)
		}
		if err := os.Rename(found[0], filepath.Join(dir, target)); err != nil {
			return err
		}
	}
	if err := r.configure(tree); err != nil {
		return err
	}
	if err := makeDisk(ctx, tree, dir+"/disk", r.Size, r.Features); err != nil {
		return err
	}
	return os.RemoveAll(tree)
}

func (r recipe) configure(tree string) error {
	for _, pattern := range r.Remove {
		found, err := filepath.Glob(tree + pattern)
		if err != nil {
			return err
		}
		for _, path := range found {
			if strings.HasPrefix(path, tree+"/etc/apparmor.d/") && sharedProfile(path) {
				continue
			}
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	for path, text := range r.Files {
		if err := os.MkdirAll(filepath.Dir(tree+path), 0o755); err != nil {
			return err
		}
		if err := os.RemoveAll(tree + path); err != nil { // it may be a link to somewhere
			return err
		}
		if err := os.WriteFile(tree+path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	wants := tree + "/etc/systemd/system/multi-user.target.wants/"
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	links := map[string]string{wants + agent: "../" + agent}
	for _, unit := range r.Mask {
		links[tree+"/etc/systemd/system/"+unit] = "/dev/null"
	}
	for path, target := range links {
		if err := errors.Join(os.RemoveAll(path), os.Symlink(target, path)); err != nil {
			return err
		}
	}
	return os.MkdirAll(tree+"/berth", 0o755)
}

// sharedProfile tells what other profiles include.
func sharedProfile(path string) bool {
	switch filepath.Base(path) {
	case "abi", "abstractions", "tunables", "local", "disable", "force-complain":
		return true
	}
	return false
}

// makeDisk makes a file with a file system that holds a copy of the tree. It needs no mount.
func makeDisk(ctx context.Context, tree, file string, size int64, features string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	return command(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", features, "-E", "root_owner=0:0", "-d", tree, file)
}

// command runs a program whose output only matters when it fails.
func command(ctx context.Context, name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin", "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		text := out.Bytes()
		return fmt.Errorf("%s: %w:\n%s", name, err, text[max(0, len(text)-4000):])
	}
	return nil
}
