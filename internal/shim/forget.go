// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"os"
	"path/filepath"
)

// forget does what the runtime's delete does, for a runtime that is broken or gone: a pod must be removable even then. A
// native runtime's container is its processes, its cgroups and a folder named for it.
func (t *task) forget() error {
	if err := t.emptyCgroup(); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(t.options.RuntimeRoot, t.id))
}

// emptyCgroup kills what is in the container's cgroup, and removes that. It is idempotent.
func (t *task) emptyCgroup() error {
	group, err := findCgroup(t.spec.cgroupsPath, t.options.SystemdCgroup, 0)
	if err != nil {
		return err
	}
	if err := group.killAll(killLimit); err != nil {
		return err
	}
	return removeCgroups(specCgroup(t.spec.cgroupsPath, t.options.SystemdCgroup))
}
