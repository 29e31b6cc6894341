// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/sock"
)

// lockPatience is how long a lock may outlive the daemon that was killed: a child that it was just forking holds it
// until its exec.
const lockPatience = 2 * time.Second

// socketMode lets root and the configured group talk to the daemon: whoever can is root on the node.
const socketMode = 0o660

// listen opens the CRI socket. A socket that nobody serves any more is replaced; one that is served is refused,
// and so is a path that is something else.
func listen(path, group string) (net.Listener, error) {
	if err := sock.ClearStale(path); errors.Is(err, sock.ErrServed) {
		return nil, fmt.Errorf("socket %s: %w; stop that daemon or choose another --socket, --root and --state", path, err)
	} else if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := share(path, group); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// share sets the socket's mode and group. A group other than root's must also be able to reach it through
// its folder, which is otherwise closed.
func share(path, group string) error {
	if err := os.Chmod(path, socketMode); err != nil {
		return err
	}
	if group == "" {
		return nil
	}
	gid, err := groupID(group)
	if err != nil {
		return fmt.Errorf("socket_group: %w", err)
	}
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err != nil {
		return err
	} else if info.Mode().Perm()&0o077 == 0 {
		if err := errors.Join(os.Chown(dir, -1, gid), os.Chmod(dir, 0o710)); err != nil {
			return err
		}
	}
	return os.Chown(path, -1, gid)
}

func groupID(group string) (int, error) {
	if n, err := strconv.Atoi(group); err == nil {
		return n, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// lockRoot takes the root folder for this daemon: two daemons on one root would each sweep the other's pods.
func lockRoot(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	for wait := time.Now().Add(lockPatience); ; time.Sleep(5 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if time.Now().After(wait) || !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("root %s is used by another daemon: stop that one or choose another --root: %w", root, err)
		}
	}
}

// closeFolder makes a folder that only its owner looks into, whatever the umask and whoever made it before. With mode 0711 others pass through to
// what they know by name and may enter: the root of a pod's user namespace, to its container's root file system.
func closeFolder(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}
