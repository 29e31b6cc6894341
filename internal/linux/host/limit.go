// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// limitNames are the kernel's resource limits as the OCI spells them.
var limitNames = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// Limits are the highest hard limits that this process can give to another, by their OCI names ("RLIMIT_NOFILE"). With CAP_SYS_RESOURCE that
// is only the kernel's own for open files, whatever this process' unit says; without it nobody can go above what they have themselves.
func Limits(capabilities []string) (map[string]uint64, error) {
	data, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return nil, fmt.Errorf("read the kernel's limit of open files: %w", err)
	}
	ceiling, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("read the kernel's limit of open files: %w", err)
	}
	all := map[string]uint64{"RLIMIT_NOFILE": ceiling}
	if slices.Contains(capabilities, "CAP_SYS_RESOURCE") {
		return all, nil
	}
	for name, n := range limitNames {
		var limit unix.Rlimit
		if err := unix.Getrlimit(n, &limit); err != nil {
			return nil, fmt.Errorf("read own %s: %w", name, err)
		}
		all[name] = limit.Max
	}
	all["RLIMIT_NOFILE"] = min(all["RLIMIT_NOFILE"], ceiling) // above nr_open nobody can set one, not even the one that is in force
	return all, nil
}
