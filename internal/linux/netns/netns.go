// SPDX-License-Identifier: Apache-2.0

// Package netns makes the namespaces of a pod sandbox (network, IPC, UTS, user) in process and keeps them alive by bind
// mounts, so that no pause process is needed; it also runs functions inside a pinned network namespace. For pod
// and daemon (making and removing them), network and stats (looking inside), stream (port-forward).
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/thread"
	"github.com/berth-run/berth/internal/linux/userns"
)

// Kind names a namespace as /proc/<pid>/ns does.
type Kind string

// The namespaces that a sandbox may have of its own. A PID namespace needs a process that stays: that is the shim's.
const (
	Net  Kind = "net"
	IPC  Kind = "ipc"
	UTS  Kind = "uts"
	User Kind = "user"
)

var cloneFlags = map[Kind]int{Net: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC, UTS: unix.CLONE_NEWUTS}

// ErrNotPinned tells that a path is not a namespace's bind mount, for example after a reboot.
var ErrNotPinned = errors.New("no namespace is pinned there")

// Request says which namespaces a sandbox gets and what is set inside them.
type Request struct {
	// Pins maps each namespace that is the sandbox's own to the file that keeps it. The files must not exist.
	Pins map[Kind]string
	// Hostname and Domainname need a UTS namespace; empty leaves what the host has.
	Hostname, Domainname string
	// Mapping is the user namespace's, which then owns all others. It comes with a pin of kind User.
	Mapping *userns.Mapping
	// Sysctls are checked by ValidateSysctls. Those of a network interface that CNI has yet to make
	// (DeferredSysctls) are left out here and set by SetSysctls after CNI.
	Sysctls map[string]string
}

// Create makes the namespaces, brings the loopback interface up, sets names and sysctls, and pins each namespace
// on its file. Either all pins are there when it returns, or none of those that it made.
func Create(r Request) error {
	if err := r.validate(); err != nil {
		return err
	}
	var pinned []string
	err := r.create(&pinned)
	if err != nil {
		return errors.Join(err, Remove(pinned...))
	}
	return nil
}

// create makes the namespaces by a thread that leaves the daemon's, or, for a user namespace, by a process that is born in it.
func (r Request) create(pinned *[]string) error {
	flags := 0
	for kind := range r.Pins {
		flags |= cloneFlags[kind]
	}
	if r.Mapping == nil {
		return thread.Run(func() (bool, error) {
			if err := unix.Unshare(flags); err != nil {
				return true, fmt.Errorf("unshare namespaces: %w", err)
			}
			return false, r.build("/proc/thread-self/ns/", pinned)
		})
	}
	return userns.With(*r.Mapping, uintptr(flags), func(pid int) error {
		from := "/proc/" + strconv.Itoa(pid) + "/ns/"
		return thread.Run(func() (bool, error) {
			if err := r.enter(from); err != nil {
				return false, err
			}
			return false, r.build(from, pinned)
		})
	})
}

// enter takes the thread into the new namespaces but the user namespace: the daemon's root may do all in them that their own root may.
func (r Request) enter(from string) error {
	for kind := range r.Pins {
		if kind == User {
			continue
		}
		fd, err := unix.Open(from+string(kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, cloneFlags[kind])
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("enter new %s namespace: %w", kind, err)
		}
	}
	return nil
}

func (r Request) validate() error {
	if len(r.Pins) == 0 {
		return errors.New("create namespaces: none was asked for")
	}
	for kind, path := range r.Pins {
		if cloneFlags[kind] == 0 && kind != User {
			return fmt.Errorf("create namespaces: unknown kind %q", kind)
		}
		if !filepath.IsAbs(path) {
			return fmt.Errorf("create %s namespace: pin %q is not an absolute path", kind, path)
		}
	}
	if _, pin := r.Pins[User]; pin != (r.Mapping != nil) {
		return errors.New("create namespaces: a user namespace wants a pin and a mapping")
	}
	_, net := r.Pins[Net]
	_, ipc := r.Pins[IPC]
	_, uts := r.Pins[UTS]
	if !uts && (r.Hostname != "" || r.Domainname != "") {
		return fmt.Errorf("set hostname %q: the sandbox has no UTS namespace of its own", r.Hostname+r.Domainname)
	}
	return ValidateSysctls(r.Sysctls, net, ipc, uts)
}

// build sets the namespaces up and pins them, which are those of the folder from. It runs in them on a thread that ends afterwards: the pins
// alone keep what it made.
func (r Request) build(from string, pinned *[]string) error {
	if _, ok := r.Pins[Net]; ok {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if r.Hostname != "" {
		if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", r.Hostname, err)
		}
	}
	if r.Domainname != "" {
		if err := unix.Setdomainname([]byte(r.Domainname)); err != nil {
			return fmt.Errorf("set domain name %q: %w", r.Domainname, err)
		}
	}
	now := maps.Clone(r.Sysctls)
	for name := range DeferredSysctls(r.Sysctls) {
		delete(now, name)
	}
	if err := r.setSysctls(now); err != nil {
		return err
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Pins)) {
		path := r.Pins[kind]
		if err := makePinFile(path); err != nil {
			return fmt.Errorf("pin %s namespace: %w", kind, err)
		}
		*pinned = append(*pinned, path)
		if err := unix.Mount(from+string(kind), path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s namespace: mount on %s: %w", kind, path, err)
		}
	}
	return nil
}

// setSysctls writes those of IPC as the root of the user namespace: they may be written by that user only, whatever capabilities another has.
func (r Request) setSysctls(all map[string]string) error {
	if r.Mapping == nil {
		return writeSysctls(all)
	}
	ipc, others := map[string]string{}, map[string]string{}
	for name, value := range all {
		if kind, _ := sysctlKind(name); kind == IPC {
			ipc[name] = value
		} else {
			others[name] = value
		}
	}
	if err := writeSysctls(others); err != nil || len(ipc) == 0 {
		return err
	}
	if err := setThreadUser(r.Mapping.UIDs.Host); err != nil {
		return err
	}
	return errors.Join(writeSysctls(ipc), setThreadUser(0))
}

// setThreadUser changes the effective user of the calling thread alone: package syscall would do it to all.
func setThreadUser(uid uint32) error {
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	return nil
}

// makePinFile refuses what is there already: a file that another sandbox pinned, or a symbolic link.
func makePinFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// loopbackUp relies on the kernel to give lo its addresses (127.0.0.1/8, ::1/128) when it comes up.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: read its flags: %w", err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// Remove unpins namespaces: each path is unmounted, however often something is mounted there, and its file removed.
// It is idempotent and copes with what a crash left half-done. All paths are tried.
func Remove(pins ...string) error {
	var errs []error
	for _, path := range pins {
		errs = append(errs, remove(path))
	}
	return errors.Join(errs...)
}

func remove(path string) error {
	if path == "" {
		return nil
	}
	if err := detach(path); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > 0 { // somebody's file, not a pin of ours
		return fmt.Errorf("unpin namespace: %s is not an empty file, it is left alone", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	return nil
}

func detach(path string) error {
	for range 64 { // each turn takes one mount off the stack
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT, unix.ENOTDIR:
			return nil
		default:
			return fmt.Errorf("unpin namespace: unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("unpin namespace: more than 64 mounts on %s", path)
}

// Pinned tells whether a namespace is mounted on path.
func Pinned(path string) bool {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err != unix.EINTR {
			return err == nil && st.Type == unix.NSFS_MAGIC
		}
	}
}
