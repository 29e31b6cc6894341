// SPDX-License-Identifier: Apache-2.0

// Package userns makes user namespaces. Only a process can be the first in one, so a child is started for the purpose, and stopped before its
// first instruction. For netns (the namespaces of a pod) and mount (idmapped mounts).
package userns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Range maps the IDs from 0 on to Size IDs of the host, from Host on.
type Range struct{ Host, Size uint32 }

// Mapping is a user namespace's.
type Mapping struct{ UIDs, GIDs Range }

func (r Range) sys() []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(r.Host), Size: int(r.Size)}}
}

// With runs fn while a stopped process is in a new user namespace and in new ones of flags (CLONE_NEWNET and others), which that one owns.
// What fn does not pin or open goes with the process. Errors of the kernel that mean "no user namespaces here": ENOSPC (the node's limit,
// user.max_user_namespaces), EPERM, EINVAL.
func With(m Mapping, flags uintptr, fn func(pid int) error) error {
	// The child's tracer, and whose end ends it, is a thread: it must not serve others, who may end it, meanwhile.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pidFD := -1
	child, err := os.StartProcess("/proc/self/exe", []string{"user-namespace"}, &os.ProcAttr{Env: []string{}, Dir: "/", Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | flags, UidMappings: m.UIDs.sys(), GidMappings: m.GIDs.sys(), GidMappingsEnableSetgroups: true,
		Ptrace: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidFD}})
	if err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	if pidFD >= 0 {
		defer unix.Close(pidFD)
	}
	return errors.Join(fn(child.Pid), end(child))
}

func end(child *os.Process) error {
	if err := child.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end the first process of a user namespace: %w", err)
	}
	if _, err := child.Wait(); err != nil {
		return fmt.Errorf("end the first process of a user namespace: %w", err)
	}
	return nil
}

// Open makes a user namespace that lives as long as the file.
func Open(m Mapping) (*os.File, error) {
	var f *os.File
	err := With(m, 0, func(pid int) (err error) {
		f, err = os.Open("/proc/" + strconv.Itoa(pid) + "/ns/user")
		return err
	})
	if err != nil && f != nil {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}
