// SPDX-License-Identifier: Apache-2.0

package runtime

import "github.com/berth-run/berth/internal/linux/proc"

// ShimMemory adds up the memory of the sandboxes' shims, in bytes and without what their program's file backs. A shim that has just ended counts as none.
func (r *Runtime) ShimMemory(sandboxes []string) (shims int, bytes uint64) {
	for _, id := range sandboxes {
		running, err := r.findShims(r.podDir(id))
		if err != nil {
			r.log.Debug("memory of shim", "sandbox", id, "error", err)
			continue
		}
		for _, shim := range running {
			own, err := proc.OwnMemory(shim.PID)
			if err != nil {
				continue
			}
			shims++
			bytes += own
		}
	}
	return shims, bytes
}
