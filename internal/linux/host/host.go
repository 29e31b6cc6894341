// SPDX-License-Identifier: Apache-2.0

// Package host tells what this node can and allows: capabilities, limits, devices, boot. For daemon, which hands the
// facts on to the pure spec generator.
package host

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// names of the kernel's capabilities, by number.
var names = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// BoundingSet lists the capabilities that this process can hand on, as "CAP_…".
func BoundingSet() ([]string, error) {
	var have []string
	for n, name := range names {
		yes, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0)
		if err == unix.EINVAL { // a kernel that does not know this one knows none of the later ones either
			break
		} else if err != nil {
			return nil, fmt.Errorf("read bounding set: %w", err)
		}
		if yes == 1 {
			have = append(have, "CAP_"+name)
		}
	}
	return have, nil
}

// OOMScoreFloor is the lowest oom_score_adj that this process can give to another: the kernel lets nobody without
// CAP_SYS_RESOURCE go below their own.
func OOMScoreFloor(capabilities []string) (int, error) {
	if slices.Contains(capabilities, "CAP_SYS_RESOURCE") {
		return -1000, nil
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("read own oom score: %w", err)
	}
	floor, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("read own oom score: %w", err)
	}
	return floor, nil
}

// Kernel is the running kernel's release, for example "6.12.41+deb13-amd64".
func Kernel() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("read kernel release: %w", err)
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

// BootID is the kernel's; it changes with each boot.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// ClockSynced tells whether something (chrony, systemd-timesyncd, a hypervisor) keeps the clock right: adjtimex(2) has no STA_UNSYNC.
func ClockSynced() (bool, error) {
	var state unix.Timex
	if _, err := unix.Adjtimex(&state); err != nil {
		return false, fmt.Errorf("ask for the clock's state: %w", err)
	}
	return state.Status&unix.STA_UNSYNC == 0, nil
}
