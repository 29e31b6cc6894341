// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
)

// ErrSysctl marks a sysctl that a pod may not set or that is malformed.
var ErrSysctl = errors.New("invalid sysctl")

// maxSysctlValue is what the kernel takes in one write of a string.
const maxSysctlValue = 4096

// namespaced lists the sysctls that belong to a namespace. All others are the host's: writing one of them from a pod
// would change the node. Of net.*, each network namespace shows only its own, or read-only ones of the host.
var namespaced = map[string]Kind{
	"kernel.msgmax": IPC, "kernel.msgmnb": IPC, "kernel.msgmni": IPC, "kernel.msg_next_id": IPC,
	"kernel.sem": IPC, "kernel.sem_next_id": IPC,
	"kernel.shmall": IPC, "kernel.shmmax": IPC, "kernel.shmmni": IPC, "kernel.shm_next_id": IPC,
	"kernel.shm_rmid_forced": IPC,
	"kernel.hostname":        UTS, "kernel.domainname": UTS,
}

var kindNames = map[Kind]string{Net: "network", IPC: "IPC", UTS: "UTS"}

// ValidateSysctls checks, without touching anything, that each sysctl is well-formed, belongs to a namespace, and that
// the pod has that namespace for itself. Errors are ErrSysctl and name the sysctl.
func ValidateSysctls(sysctls map[string]string, hasNet, hasIPC, hasUTS bool) error {
	own := map[Kind]bool{Net: hasNet, IPC: hasIPC, UTS: hasUTS}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		if err := validateSysctl(name, sysctls[name], own); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func validateSysctl(name, value string, own map[Kind]bool) error {
	if err := checkSysctlName(name); err != nil {
		return err
	}
	if strings.ContainsAny(value, "\x00\n\r") {
		return fmt.Errorf("%w %q: its value %.64q has a control character", ErrSysctl, name, value)
	}
	if len(value) > maxSysctlValue {
		return fmt.Errorf("%w %q: its value has %d bytes, the kernel takes %d", ErrSysctl, name, len(value), maxSysctlValue)
	}
	kind, ok := sysctlKind(name)
	if !ok {
		return fmt.Errorf("%w %q: it is the host's, pods may set net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem and kernel.domainname", ErrSysctl, name)
	}
	if !own[kind] {
		return fmt.Errorf("%w %q: it needs a %s namespace of the pod's own, this pod uses the host's", ErrSysctl, name, kindNames[kind])
	}
	return nil
}

// checkSysctlName lets through nothing that a path or another sysctl could be hidden in (CVE-2022-0811).
func checkSysctlName(name string) error {
	if len(name) > 255 {
		return fmt.Errorf("%w: its name %.64q… has %d bytes", ErrSysctl, name, len(name))
	}
	for _, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return fmt.Errorf("%w %q: its name has the character %q; write it with dots", ErrSysctl, name, c)
		}
	}
	if slices.Contains(strings.Split(name, "."), "") {
		return fmt.Errorf("%w %q: its name has an empty part", ErrSysctl, name)
	}
	return nil
}

func sysctlKind(name string) (Kind, bool) {
	switch {
	case strings.HasPrefix(name, "net."):
		return Net, true
	case strings.HasPrefix(name, "fs.mqueue."):
		return IPC, true
	}
	kind, ok := namespaced[name]
	return kind, ok
}

// DeferredSysctls picks those that belong to a network interface which only CNI makes (net.ipv4.conf.eth0.…).
func DeferredSysctls(sysctls map[string]string) map[string]string {
	deferred := map[string]string{}
	for name, value := range sysctls {
		part := strings.Split(name, ".") // net . ipv4 . conf . eth0 . forwarding
		if len(part) < 5 || part[0] != "net" || (part[2] != "conf" && part[2] != "neigh") {
			continue
		}
		if part[3] != "all" && part[3] != "default" && part[3] != "lo" {
			deferred[name] = value
		}
	}
	return deferred
}

// SetSysctls sets network sysctls inside the network namespace pinned at path. Others are refused.
func SetSysctls(path string, sysctls map[string]string) error {
	if len(sysctls) == 0 {
		return nil
	}
	if err := ValidateSysctls(sysctls, true, false, false); err != nil {
		return err
	}
	return Do(path, func() error { return writeSysctls(sysctls) })
}

// writeSysctls writes into the namespaces of the calling thread.
func writeSysctls(sysctls map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		if err := writeSysctl(name, sysctls[name]); err != nil {
			return err
		}
	}
	return nil
}

func writeSysctl(name, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("set sysctl %s: this kernel has no such setting in a pod's namespace: %w", name, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("set sysctl %s: it is read-only in a pod's namespace: %w", name, err)
	case err != nil:
		return fmt.Errorf("set sysctl %s: %w", name, err)
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %.64q: %w", name, value, err)
	}
	return nil
}
