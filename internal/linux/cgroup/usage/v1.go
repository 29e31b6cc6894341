// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"bytes"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

// v1 reads cgroup v1. The kernel's "total_" figures are those with the cgroups below, which containers with an init system have.
// d may be nil.
func (r *reader) v1(u *Usage, d *Detail) {
	u.CPU = r.number("cpuacct", "cpuacct.usage")
	u.CPUAt = now()
	u.Memory = r.number("memory", "memory.usage_in_bytes")
	u.MemoryAt = now()
	above, both := r.v1Memory(u, d)
	// A limit that neither the cgroup nor one above it has need not be looked at.
	if u.MemoryLimit = above; above.Value != Unlimited {
		u.MemoryLimit = r.number("memory", "memory.limit_in_bytes")
	}
	if both.Value != Unlimited {
		both = r.number("memory", "memory.memsw.limit_in_bytes")
	}
	u.SwapLimit = swapAlone(both, u.MemoryLimit)
	if r.f.h.Mode() == cgroup.Hybrid {
		r.psi(u)
	}
	if d != nil {
		d.Limits.Memory, d.Limits.Swap = u.MemoryLimit, both
		r.v1Detail(d)
	}
}

// swapAlone is how much may be swapped out: v1 limits memory and swap together.
func swapAlone(both, memory Counter) Counter {
	if !both.Known || both.Value == Unlimited || !memory.Known || memory.Value == Unlimited {
		return both
	}
	return known(both.Value - min(memory.Value, both.Value))
}

// v1Memory reads memory.stat, and returns the lowest limits of the cgroup and those above it, of memory and with swap.
func (r *reader) v1Memory(u *Usage, d *Detail) (memory, both Counter) {
	pairs(r.read("memory", "memory.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "hierarchical_memory_limit":
			memory = limit(n)
		case "hierarchical_memsw_limit":
			both = limit(n)
		case "total_rss":
			u.RSS = known(n)
		case "total_inactive_file":
			u.InactiveFile = known(n)
		case "total_pgfault":
			u.PageFaults = known(n)
		case "total_pgmajfault":
			u.MajorFaults = known(n)
		case "total_swap":
			u.Swap = known(n)
		default:
			if d != nil {
				d.v1Memory(key, n)
			}
		}
	})
	return memory, both
}

func (d *Detail) v1Memory(key []byte, n uint64) {
	switch string(key) {
	case "total_cache":
		d.Cache = known(n)
	case "total_mapped_file":
		d.Mapped = known(n)
	case "total_active_file":
		d.ActiveFile = known(n)
	case "pgfault":
		d.OwnPageFaults = known(n)
	case "pgmajfault":
		d.OwnMajorFaults = known(n)
	}
}

func (r *reader) v1Detail(d *Detail) {
	d.User = r.number("cpuacct", "cpuacct.usage_user")
	d.System = r.number("cpuacct", "cpuacct.usage_sys")
	pairs(r.read("cpu", "cpu.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "nr_periods":
			d.Periods = known(n)
		case "nr_throttled":
			d.ThrottledPeriods = known(n)
		case "throttled_time":
			d.Throttled = known(n)
		case "nr_bursts":
			d.Bursts = known(n)
		case "burst_time":
			d.Burst = known(n)
		}
	})
	d.Kernel = r.number("memory", "memory.kmem.usage_in_bytes")
	d.MaxUsage = r.number("memory", "memory.max_usage_in_bytes")
	d.FailCount = r.number("memory", "memory.failcnt")
	pairs(r.read("memory", "memory.oom_control"), func(key []byte, n uint64) {
		if string(key) == "oom_kill" {
			d.OOMKills = known(n)
		}
	})
	d.IO = r.v1IO()
	d.HugeTLB = r.hugeTLB("hugetlb", "usage_in_bytes", "max_usage_in_bytes")
	d.Tasks = r.number("pids", "pids.current")
	d.TasksMax = r.number("pids", "pids.max")
	d.Limits.Shares, d.Limits.Period = r.number("cpu", "cpu.shares"), r.number("cpu", "cpu.cfs_period_us")
	d.Limits.Quota = r.number("cpu", "cpu.cfs_quota_us")
	d.Limits.MemoryReservation = r.number("memory", "memory.soft_limit_in_bytes")
}

// v1IO reads the throttling policy's counters, the only ones that count with every I/O scheduler.
func (r *reader) v1IO() []Device {
	var devices []Device
	each := func(name string, f func(d *Device, operation string, n uint64)) {
		data := r.read("blkio", name)
		for len(data) > 0 {
			var line []byte
			line, data, _ = bytes.Cut(data, []byte{'\n'})
			fields := bytes.Fields(line)
			if len(fields) != 3 {
				continue
			}
			major, minor, ok := device(fields[0])
			n, isNumber := digits(fields[2])
			if ok && isNumber {
				f(deviceOf(&devices, major, minor), string(fields[1]), n)
			}
		}
	}
	each("blkio.throttle.io_service_bytes_recursive", func(d *Device, operation string, n uint64) {
		d.Bytes[operation] = n
		switch operation {
		case "Read":
			d.ReadBytes = n
		case "Write":
			d.WriteBytes = n
		}
	})
	each("blkio.throttle.io_serviced_recursive", func(d *Device, operation string, n uint64) {
		switch operation {
		case "Read":
			d.Reads = n
		case "Write":
			d.Writes = n
		}
	})
	return devices
}

func deviceOf(all *[]Device, major, minor uint64) *Device {
	for i := range *all {
		if d := &(*all)[i]; d.Major == major && d.Minor == minor {
			return d
		}
	}
	*all = append(*all, Device{Major: major, Minor: minor, Bytes: map[string]uint64{}})
	return &(*all)[len(*all)-1]
}
