// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/cgroup/slice"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/pod"
)

// kernel implements pod.Host.
type kernel struct {
	cgroups *cgroup.Hierarchies
	driver  string
	slices  *slice.Manager // nil under cgroupfs
	// oomFloor is the lowest oom_score_adj that this daemon may set.
	oomFloor int
}

func (k kernel) Dial(ctx context.Context, path string, address netip.AddrPort) (net.Conn, error) {
	return netns.Dial(ctx, path, address)
}

func (k kernel) CreateNamespaces(r pod.NamespaceRequest) error {
	pins := map[netns.Kind]string{}
	for kind, path := range map[netns.Kind]string{netns.Net: r.Pins.Net, netns.IPC: r.Pins.IPC, netns.UTS: r.Pins.UTS} {
		if path != "" {
			pins[kind] = path
		}
	}
	return netns.Create(netns.Request{Pins: pins, Hostname: r.Hostname, Sysctls: r.Sysctls})
}

func (k kernel) RemoveNamespaces(p pod.NamespacePins) error {
	var pins []string
	for _, path := range []string{p.Net, p.IPC, p.UTS} {
		if path != "" {
			pins = append(pins, path)
		}
	}
	return netns.Remove(pins...)
}

func (k kernel) SetInterfaceSysctls(path string, sysctls map[string]string) error {
	if late := netns.DeferredSysctls(sysctls); len(late) > 0 {
		return netns.SetSysctls(path, late)
	}
	return nil
}

func (k kernel) PinPID(pid int, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("pin PID namespace: %w", err)
	}
	f.Close()
	return mount.Mount{Source: "/proc/" + strconv.Itoa(pid) + "/ns/pid", Options: []string{"bind"}}.On(path)
}

func (k kernel) Unpin(path string) error {
	if err := mount.Detach(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}

func (k kernel) CgroupExists(parent string) (bool, error) {
	path, err := cgroup.ParentPath(k.driver, parent)
	if err != nil {
		return false, fmt.Errorf("linux.cgroup_parent: %w: %w", pod.ErrInvalid, err)
	}
	return k.cgroups.Exists(path)
}

func (k kernel) CreateCgroup(ctx context.Context, parent string) error {
	if k.slices != nil {
		return k.slices.Start(ctx, parent)
	}
	path, err := cgroup.ParentPath(k.driver, parent)
	if err != nil {
		return err
	}
	_, err = k.cgroups.Create(path)
	return err
}

func (k kernel) RemoveCgroup(ctx context.Context, parent string) error {
	path, err := cgroup.ParentPath(k.driver, parent)
	if err != nil {
		return err
	}
	if err := k.cgroups.Kill(ctx, path); err != nil {
		return err
	}
	if k.slices != nil {
		if err := k.slices.Stop(ctx, parent); err != nil {
			return err
		}
	}
	return k.cgroups.Remove(ctx, path)
}

func (k kernel) MountShm(target string, size int64) error {
	return mount.Mount{Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "nodev", "noexec", "mode=1777", "size=" + strconv.FormatInt(size, 10)}}.On(target)
}

func (k kernel) MountRootfs(target string, mounts []image.Mount) error {
	for _, m := range mounts {
		if err := (mount.Mount{Type: m.Type, Source: m.Source, Options: m.Options}).On(target); err != nil {
			return errors.Join(err, mount.Detach(target))
		}
	}
	return nil
}

func (k kernel) Unmount(target string) error { return mount.Detach(target) }

func (k kernel) UnmountBelow(dir string) error { return mount.DetachBelow(dir) }

// sibling finds a program that was installed together with this one: path if set, else names beside the
// running binary, else name on PATH.
func sibling(path, name string, beside ...string) (string, error) {
	if path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err == nil {
		for _, b := range append(beside, name) {
			p := filepath.Join(filepath.Dir(self), b)
			if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return p, nil
			}
		}
	}
	return onPath(name)
}
