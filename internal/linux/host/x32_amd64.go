// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"regexp"

	"golang.org/x/sys/unix"
)

// x32Bit marks the number of a system call as one of the x32 ABI (__X32_SYSCALL_BIT).
const x32Bit = 0x40000000

var unfiltered = regexp.MustCompile(`(?m)^Seccomp:\s+0$`)

// NoX32 tells that the kernel runs no programs of the x32 ABI (x86-64 with pointers of 32 bits), as most are built; such a kernel
// answers their calls with ENOSYS. A filter on this process may answer in the kernel's place, or kill: then false.
func NoX32() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !unfiltered.Match(status) {
		return false
	}
	_, _, errno := unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	return errno == unix.ENOSYS
}
