// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"maps"

	"golang.org/x/sys/unix"
)

// Reset gives the pinned namespaces of a request the host name and the sysctls of IPC that it asks for once more: what was restored from a checkpoint has
// brought those along that it had before.
func Reset(r Request) error {
	if path := r.Pins[UTS]; path != "" && r.Hostname != "" {
		if err := in(UTS, path, func() error { return unix.Sethostname([]byte(r.Hostname)) }); err != nil {
			return fmt.Errorf("set hostname %q: %w", r.Hostname, err)
		}
	}
	again := maps.Clone(r.Sysctls)
	maps.DeleteFunc(again, func(name, _ string) bool { kind, _ := sysctlKind(name); return kind != IPC })
	if path := r.Pins[IPC]; path != "" && len(again) > 0 {
		return in(IPC, path, func() error { return writeSysctls(again) })
	}
	return nil
}
