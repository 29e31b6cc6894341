// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// AppArmor tells whether the kernel confines processes by AppArmor profiles.
func AppArmor() bool {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !strings.HasPrefix(string(data), "Y") {
		return false
	}
	_, err = os.Stat("/sys/kernel/security/apparmor") // without it no profile can be loaded or named
	return err == nil
}

// SELinux tells whether the kernel labels processes with SELinux, enforcing or not.
func SELinux() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

// Seccomp tells whether the kernel takes seccomp filters. It asks for one at an address that cannot be: EFAULT means yes.
func Seccomp() bool {
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0) == unix.EFAULT
}
