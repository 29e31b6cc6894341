// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"fmt"
	"os"
)

// OwnMemory is what a process has in memory that no file backs, in bytes: what its end would give back (proc(5), statm). It reads one line, where the
// exact shares of /proc/PID/smaps_rollup make the kernel walk all page tables.
func OwnMemory(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, resident, shared uint64
	if _, err := fmt.Sscanf(string(data), "%d %d %d", &size, &resident, &shared); err != nil || shared > resident {
		return 0, fmt.Errorf("read memory of process %d: %.80q", pid, data)
	}
	return (resident - shared) * uint64(os.Getpagesize()), nil
}
