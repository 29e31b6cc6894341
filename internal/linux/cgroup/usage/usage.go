// SPDX-License-Identifier: Apache-2.0

// Package usage reads what a cgroup uses: CPU, memory, swap, tasks, disk I/O, pressure, and the limits that are set. It knows cgroup v1,
// v2 and the hybrid layout, changes nothing, and starts nothing. internal/stats uses it.
package usage

import (
	"errors"
	"time"
)

// ErrGone means that there is no such cgroup any more.
var ErrGone = errors.New("cgroup is gone")

// Unlimited is a limit that is not set.
const Unlimited = ^uint64(0)

// Counter is a figure that the kernel may not give; Known tells it from 0.
type Counter struct {
	Value uint64
	Known bool
}

func known(v uint64) Counter { return Counter{v, true} }

// Pressure is one line of the kernel's pressure stall information: averages in per cent, the total in nanoseconds.
type Pressure struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// PSI is how long some, and all, tasks have waited for a resource. Nil where the kernel does not tell.
type PSI struct{ Some, Full Pressure }

// Usage is what a list of all containers asks for: few files, read often.
type Usage struct {
	// CPUAt is when the CPU counter was read, MemoryAt the memory.
	CPUAt, MemoryAt time.Time
	// CPU is the time used on all cores, in nanoseconds.
	CPU Counter

	// Memory is all of it in bytes, with the page cache; Inactive is the part of the cache that the kernel would drop first.
	Memory, InactiveFile Counter
	// RSS is anonymous memory, in bytes; v1 counts the swap cache with it.
	RSS                     Counter
	PageFaults, MajorFaults Counter
	// MemoryLimit and SwapLimit are the cgroup's own, in bytes; Unlimited if not set.
	MemoryLimit, SwapLimit Counter
	Swap                   Counter

	CPUPressure, MemoryPressure, IOPressure *PSI
}

// WorkingSet is the memory that cannot be dropped at once: all but the inactive page cache, as cAdvisor and the kubelet have it.
func (u Usage) WorkingSet() Counter {
	if !u.Memory.Known {
		return Counter{}
	}
	return known(u.Memory.Value - min(u.InactiveFile.Value, u.Memory.Value))
}

// Available is what is left up to the memory limit, in bytes; not known without a limit.
func (u Usage) Available() Counter {
	ws := u.WorkingSet()
	if !ws.Known || !u.MemoryLimit.Known || u.MemoryLimit.Value == Unlimited {
		return Counter{}
	}
	return known(u.MemoryLimit.Value - min(ws.Value, u.MemoryLimit.Value))
}

// SwapAvailable is what is left up to the swap limit, in bytes; not known without a limit.
func (u Usage) SwapAvailable() Counter {
	if !u.Swap.Known || !u.SwapLimit.Known || u.SwapLimit.Value == Unlimited {
		return Counter{}
	}
	return known(u.SwapLimit.Value - min(u.Swap.Value, u.SwapLimit.Value))
}

// Detail is what metrics show beside Usage.
type Detail struct {
	// CPU time in nanoseconds.
	User, System Counter
	// CFS bandwidth: periods, those in which the cgroup was throttled, and for how long in nanoseconds.
	Periods, ThrottledPeriods, Throttled Counter
	// Bursts are the periods in which the cgroup used CPU time that it had saved (cpu.max.burst, Linux 5.14), Burst how much in nanoseconds.
	Bursts, Burst Counter

	// Memory in bytes; FailCount is how often its limit was hit.
	Cache, Kernel, Mapped, MaxUsage, ActiveFile Counter
	FailCount, OOMKills                         Counter
	// OwnPageFaults and OwnMajorFaults are without those of cgroups below; v2 does not tell them apart.
	OwnPageFaults, OwnMajorFaults Counter

	IO      []Device
	HugeTLB []HugePages
	Limits  Limits

	// Tasks are threads, TasksMax their limit (Unlimited if there is none).
	Tasks, TasksMax Counter
}

// Device is the I/O of one block device.
type Device struct {
	Major, Minor uint64
	// In bytes, and in operations.
	ReadBytes, WriteBytes, Reads, Writes uint64
	// Bytes by operation, as v1 names them: it tells Sync and Async apart, and has a Total.
	Bytes map[string]uint64
}

// HugePages is the use of one size of huge pages, in bytes.
type HugePages struct {
	Size     string // as the kernel names it, for example "2MB"
	Used     uint64
	MaxUsage Counter
}

// Limits are what the cgroup was given.
type Limits struct {
	Shares, Period, Quota           Counter // Quota: Unlimited if none
	Memory, Swap, MemoryReservation Counter // bytes; Unlimited if none. Swap is with memory on v1, without on v2
}
