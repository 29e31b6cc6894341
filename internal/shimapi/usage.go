// SPDX-License-Identifier: Apache-2.0

package shimapi

// TaskUsage is what `berth-shim task … stats ID` writes: what a runtime whose containers have no cgroups of their own (gVisor, Kata) tells of
// one container. Zero is also what it does not tell.
type TaskUsage struct {
	// CPU is the time used on all cores, in nanoseconds.
	CPU uint64 `json:"cpu_ns"`
	// Memory is all of it in bytes, InactiveFile the part of the page cache that would be dropped first, MemoryLimit the limit.
	Memory       uint64 `json:"memory_bytes"`
	MemoryLimit  uint64 `json:"memory_limit_bytes,omitempty"`
	InactiveFile uint64 `json:"inactive_file_bytes,omitempty"`
	Tasks        uint64 `json:"tasks,omitempty"`
}
