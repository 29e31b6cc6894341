// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/cgroup/slice"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/linux/pidfd"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/linux/userns"
	"github.com/berth-run/berth/internal/pod"
)

// kernel implements pod.Host.
type kernel struct {
	cgroups *cgroup.Hierarchies
	driver  string
	slices  *slice.Manager // nil under cgroupfs
	top     *topCgroup
	// oomFloor is the lowest oom_score_adj that this daemon may set.
	oomFloor int
}

func (k kernel) Dial(ctx context.Context, path string, address netip.AddrPort) (net.Conn, error) {
	return netns.Dial(ctx, path, address)
}

func (k kernel) CreateNamespaces(r pod.NamespaceRequest) error { return netns.Create(namespaces(r)) }

func (k kernel) ResetNamespaces(r pod.NamespaceRequest) error { return netns.Reset(namespaces(r)) }

func namespaces(r pod.NamespaceRequest) netns.Request {
	pins := map[netns.Kind]string{}
	for kind, path := range map[netns.Kind]string{netns.Net: r.Pins.Net, netns.IPC: r.Pins.IPC, netns.UTS: r.Pins.UTS, netns.User: r.Pins.User} {
		if path != "" {
			pins[kind] = path
		}
	}
	request := netns.Request{Pins: pins, Hostname: r.Hostname, Sysctls: r.Sysctls}
	if u := r.UserNS; u != nil {
		request.Mapping = &userns.Mapping{UIDs: userns.Range(u.UIDs), GIDs: userns.Range(u.GIDs)}
	}
	return request
}

func (k kernel) RemoveNamespaces(p pod.NamespacePins) error {
	var pins []string
	for _, path := range []string{p.Net, p.IPC, p.UTS, p.User} {
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

func (k kernel) PinPID(pid int, cgroup, path string) error {
	ns, err := pidNamespace(pid, cgroup)
	if errors.Is(err, pidfd.ErrGone) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin PID namespace: %w: %w", pod.ErrNotFound, err)
	}
	if err != nil {
		return fmt.Errorf("pin PID namespace: %w", err)
	}
	defer ns.Close()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("pin PID namespace: %w", err)
	}
	f.Close()
	return mount.Mount{Source: fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), Options: []string{"bind"}}.On(path)
}

// pidNamespace opens the PID namespace of a process of the container that the cgroup is named for. The process is held meanwhile, and its cgroup
// tells that it is no other one that has got the PID since.
func pidNamespace(pid int, container string) (*os.File, error) {
	held, err := pidfd.Open(pid)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/pid")
	if err != nil {
		return nil, err
	}
	cgroups, err := proc.CgroupPaths(pid)
	if err == nil {
		err = held.Signal(0) // it was there all the time, so what was read is its
	}
	if err == nil && !slices.ContainsFunc(slices.Collect(maps.Values(cgroups)), func(p string) bool { return strings.Contains(p, container) }) {
		err = fmt.Errorf("process %d is not in the cgroup of %s: %w", pid, container, pidfd.ErrGone)
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
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
		slice, err := cgroup.SliceName(parent)
		if err != nil {
			return err
		}
		return k.slices.Start(ctx, slice)
	}
	path, err := cgroup.ParentPath(k.driver, parent)
	if err != nil {
		return err
	}
	return k.top.create(path)
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
		if err := k.slices.Stop(ctx, filepath.Base(path)); err != nil {
			return err
		}
	}
	return k.cgroups.Remove(ctx, path)
}

func (k kernel) MountShm(target string, size int64, uid, gid int, label string) error {
	m := mount.Mount{Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "noexec", "mode=1777",
		fmt.Sprintf("size=%d,uid=%d,gid=%d", size, uid, gid)}}
	if label != "" {
		m.Options = append(m.Options, mount.Context(label))
	}
	return m.On(target)
}

func (k kernel) MountOverlay(target string, o mount.Overlay) error { return o.On(target) }

func (k kernel) Unmount(target string) error { return mount.DetachOverlay(target) }

func (k kernel) UnmountBelow(dir string) error { return mount.DetachBelow(dir) }
