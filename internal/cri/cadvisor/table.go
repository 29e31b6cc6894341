// SPDX-License-Identifier: Apache-2.0

package cadvisor

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup/usage"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/stats"
)

// table holds all metrics, in cAdvisor's order. Its help texts say what it counts.
var table = slices.Concat(general, cpu, memory, disk, network, process, pressure, spec)

var general = []metric{
	{"container_last_seen", "Last time the container was seen, in seconds since the epoch.", gaugeType, nil,
		func(o *Object, emit emit) { emit(uint64(o.Now.Unix())) }},
	{"container_start_time_seconds", "Start of the container, in seconds since the epoch.", gaugeType, nil,
		func(o *Object, emit emit) { emit(uint64(o.Started.Unix())) }},
	{"container_oom_events_total", "Processes that the kernel killed for want of memory.", counterType, nil,
		detail(func(d *stats.Detail) usage.Counter { return d.OOMKills })},
}

var cpu = []metric{
	{"container_cpu_user_seconds_total", "CPU time used in user mode, in seconds.", counterType, nil,
		seconds(func(d *stats.Detail) usage.Counter { return d.User })},
	{"container_cpu_system_seconds_total", "CPU time used in kernel mode, in seconds.", counterType, nil,
		seconds(func(d *stats.Detail) usage.Counter { return d.System })},
	{"container_cpu_usage_seconds_total", "CPU time used, in seconds.", counterType, []string{"cpu"}, func(o *Object, emit emit) {
		if o.Detail != nil && o.Detail.CPU.Known {
			emit(whole(o.Detail.CPU.Value), "total")
		}
	}},
	{"container_cpu_cfs_periods_total", "Enforcement periods of the CPU quota.", counterType, nil,
		withQuota(func(d *stats.Detail) usage.Counter { return d.Periods })},
	{"container_cpu_cfs_throttled_periods_total", "Enforcement periods in which the container was throttled.", counterType, nil,
		withQuota(func(d *stats.Detail) usage.Counter { return d.ThrottledPeriods })},
	{"container_cpu_cfs_throttled_seconds_total", "Time that the container was throttled, in seconds.", counterType, nil,
		withQuota(func(d *stats.Detail) usage.Counter { return scaled(d.Throttled) })},
	{"container_cpu_cfs_burst_periods_total", "Enforcement periods in which the container used CPU time that it had saved.", counterType, nil,
		withQuota(func(d *stats.Detail) usage.Counter { return d.Bursts })},
	{"container_cpu_cfs_burst_seconds_total", "CPU time beyond the quota that the container had saved before, in seconds.", counterType, nil,
		withQuota(func(d *stats.Detail) usage.Counter { return scaled(d.Burst) })},
}

var memory = []metric{
	{"container_memory_cache", "Page cache, in bytes.", gaugeType, nil, detail(func(d *stats.Detail) usage.Counter { return d.Cache })},
	{"container_memory_rss", "Anonymous memory, in bytes.", gaugeType, nil, detail(func(d *stats.Detail) usage.Counter { return d.RSS })},
	{"container_memory_kernel_usage", "Kernel memory, in bytes.", gaugeType, nil, detail(func(d *stats.Detail) usage.Counter { return d.Kernel })},
	{"container_memory_mapped_file", "Memory mapped files, in bytes.", gaugeType, nil, detail(func(d *stats.Detail) usage.Counter { return d.Mapped })},
	{"container_memory_swap", "Swap used, in bytes.", gaugeType, nil, detail(func(d *stats.Detail) usage.Counter { return d.Swap })},
	{"container_memory_failcnt", "Times that the memory limit was hit.", counterType, nil, detail(func(d *stats.Detail) usage.Counter { return d.FailCount })},
	{"container_memory_usage_bytes", "Memory used, with the page cache, in bytes.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return d.Memory })},
	{"container_memory_max_usage_bytes", "Most memory that was ever used, in bytes.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return d.MaxUsage })},
	{"container_memory_working_set_bytes", "Memory used without the inactive page cache, in bytes.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return d.WorkingSet() })},
	{"container_memory_total_active_file_bytes", "Active page cache, in bytes.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return d.ActiveFile })},
	{"container_memory_total_inactive_file_bytes", "Inactive page cache, in bytes.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return d.InactiveFile })},
	{"container_memory_failures_total", "Page faults.", counterType, []string{"failure_type", "scope"}, faults},
	{"container_hugetlb_usage_bytes", "Huge pages used, in bytes.", gaugeType, []string{"pagesize"}, func(o *Object, emit emit) {
		for _, h := range hugePages(o) {
			emit(h.Used, h.Size)
		}
	}},
	{"container_hugetlb_max_usage_bytes", "Most huge pages that were ever used, in bytes.", gaugeType, []string{"pagesize"}, func(o *Object, emit emit) {
		for _, h := range hugePages(o) {
			if h.MaxUsage.Known {
				emit(h.MaxUsage.Value, h.Size)
			}
		}
	}},
}

var disk = []metric{
	{"container_fs_inodes_free", "Free inodes of the file system.", gaugeType, []string{"device"},
		fs(func(f *FS, emit emit) { emit(f.InodesFree, f.Device) })},
	{"container_fs_inodes_total", "Inodes of the file system.", gaugeType, []string{"device"}, fs(func(f *FS, emit emit) { emit(f.Inodes, f.Device) })},
	{"container_fs_limit_bytes", "Size of the file system, in bytes.", gaugeType, []string{"device"},
		fs(func(f *FS, emit emit) { emit(f.Capacity, f.Device) })},
	{"container_fs_usage_bytes", "What the container's writable layer takes of the file system, in bytes.", gaugeType, []string{"device"},
		fs(func(f *FS, emit emit) {
			if f.Layer != nil {
				emit(f.Layer.Bytes, f.Device)
			}
		})},
	{"container_fs_reads_bytes_total", "Bytes read.", counterType, []string{"device"}, io(func(d usage.Device) uint64 { return d.ReadBytes })},
	{"container_fs_reads_total", "Reads completed.", counterType, []string{"device"}, io(func(d usage.Device) uint64 { return d.Reads })},
	{"container_fs_writes_bytes_total", "Bytes written.", counterType, []string{"device"}, io(func(d usage.Device) uint64 { return d.WriteBytes })},
	{"container_fs_writes_total", "Writes completed.", counterType, []string{"device"}, io(func(d usage.Device) uint64 { return d.Writes })},
	{"container_blkio_device_usage_total", "Bytes by block device and operation.", counterType, []string{"device", "major", "minor", "operation"}, blkio},
}

var network = []metric{
	{"container_network_receive_bytes_total", "Bytes received.", counterType, []string{"interface"},
		each(func(i netns.Interface) uint64 { return i.RxBytes })},
	{"container_network_receive_packets_total", "Packets received.", counterType, []string{"interface"},
		each(func(i netns.Interface) uint64 { return i.RxPackets })},
	{"container_network_receive_packets_dropped_total", "Packets dropped while receiving.", counterType, []string{"interface"},
		each(func(i netns.Interface) uint64 { return i.RxDropped })},
	{"container_network_receive_errors_total", "Errors while receiving.", counterType, []string{"interface"},
		each(func(i netns.Interface) uint64 { return i.RxErrors })},
	{"container_network_transmit_bytes_total", "Bytes transmitted.", counterType, []string{"interface"},
		each(func(i netns.Interface) uint64 { return i.TxBytes })},
	{"container_network_transmit_packets_total", "Packets transmitted.", counterType, []string{"interface"},
		each(func(i netns.Interface) uint64 { return i.TxPackets })},
	{"container_network_transmit_packets_dropped_total", "Packets dropped while transmitting.", counterType, []string{"interface"},
		each(func(i netns.Interface) uint64 { return i.TxDropped })},
	{"container_network_transmit_errors_total", "Errors while transmitting.", counterType, []string{"interface"},
		each(func(i netns.Interface) uint64 { return i.TxErrors })},
}

var process = []metric{
	{"container_processes", "Processes.", gaugeType, nil, processes(func(p *stats.Processes, emit emit) { emit(uint64(p.Count)) })},
	{"container_file_descriptors", "Open file descriptors.", gaugeType, nil, processes(func(p *stats.Processes, emit emit) { emit(uint64(p.Files)) })},
	{"container_sockets", "Open sockets.", gaugeType, nil, processes(func(p *stats.Processes, emit emit) { emit(uint64(p.Sockets)) })},
	{"container_threads_max", "Most threads that there may be; 0: any number.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return limited(d.TasksMax) })},
	// The pids controller counts threads, on v1 as on v2.
	{"container_threads", "Threads.", gaugeType, nil, detail(func(d *stats.Detail) usage.Counter { return d.Detail.Tasks })},
	{"container_ulimits_soft", "Soft resource limits of the container's first process.", gaugeType, []string{"ulimit"},
		processes(func(p *stats.Processes, emit emit) {
			if p.MaxFiles.Known && p.MaxFiles.Value != usage.Unlimited { // cAdvisor's -1 is none of the CRI's numbers
				emit(p.MaxFiles.Value, "max_open_files")
			}
		})},
}

var pressure = []metric{
	{"container_pressure_cpu_stalled_seconds_total", "Time in which no task could go on for want of CPU, in seconds.", counterType, nil,
		stalled(func(d *stats.Detail) *usage.PSI { return d.CPUPressure })},
	{"container_pressure_cpu_waiting_seconds_total", "Time in which tasks waited for CPU, in seconds.", counterType, nil,
		waiting(func(d *stats.Detail) *usage.PSI { return d.CPUPressure })},
	{"container_pressure_memory_stalled_seconds_total", "Time in which no task could go on for want of memory, in seconds.", counterType, nil,
		stalled(func(d *stats.Detail) *usage.PSI { return d.MemoryPressure })},
	{"container_pressure_memory_waiting_seconds_total", "Time in which tasks waited for memory, in seconds.", counterType, nil,
		waiting(func(d *stats.Detail) *usage.PSI { return d.MemoryPressure })},
	{"container_pressure_io_stalled_seconds_total", "Time in which no task could go on for want of I/O, in seconds.", counterType, nil,
		stalled(func(d *stats.Detail) *usage.PSI { return d.IOPressure })},
	{"container_pressure_io_waiting_seconds_total", "Time in which tasks waited for I/O, in seconds.", counterType, nil,
		waiting(func(d *stats.Detail) *usage.PSI { return d.IOPressure })},
}

var spec = []metric{
	{"container_spec_cpu_period", "Enforcement period of the CPU quota, in microseconds.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return d.Limits.Period })},
	{"container_spec_cpu_quota", "CPU quota in each period, in microseconds.", gaugeType, nil,
		withQuota(func(d *stats.Detail) usage.Counter { return d.Limits.Quota })},
	{"container_spec_cpu_shares", "CPU shares.", gaugeType, nil, detail(func(d *stats.Detail) usage.Counter { return d.Limits.Shares })},
	{"container_spec_memory_limit_bytes", "Memory limit, in bytes; 0: none.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return limited(d.Limits.Memory) })},
	{"container_spec_memory_swap_limit_bytes", "Swap limit, in bytes; 0: none. On cgroup v1 it includes memory.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return limited(d.Limits.Swap) })},
	{"container_spec_memory_reservation_limit_bytes", "Memory that is kept from reclaim, in bytes; 0: none.", gaugeType, nil,
		detail(func(d *stats.Detail) usage.Counter { return limited(d.Limits.MemoryReservation) })},
}

func detail(get func(*stats.Detail) usage.Counter) func(*Object, emit) {
	return func(o *Object, emit emit) {
		if o.Detail == nil {
			return
		}
		if c := get(o.Detail); c.Known {
			emit(c.Value)
		}
	}
}

func seconds(get func(*stats.Detail) usage.Counter) func(*Object, emit) {
	return detail(func(d *stats.Detail) usage.Counter { return scaled(get(d)) })
}

// withQuota is for what has a meaning only with a CPU quota; without one cAdvisor leaves it out.
func withQuota(get func(*stats.Detail) usage.Counter) func(*Object, emit) {
	return detail(func(d *stats.Detail) usage.Counter {
		if q := d.Limits.Quota; !q.Known || q.Value == usage.Unlimited {
			return usage.Counter{}
		}
		return get(d)
	})
}

func scaled(c usage.Counter) usage.Counter {
	return usage.Counter{Value: whole(c.Value), Known: c.Known}
}

func whole(nanos uint64) uint64 { return nanos / uint64(time.Second) }

// limited has cAdvisor's 0 for no limit.
func limited(c usage.Counter) usage.Counter {
	if c.Value == usage.Unlimited {
		c.Value = 0
	}
	return c
}

// faults has all of them as the hierarchy's, and those of the cgroup without others below as the container's. v2 has one figure for both.
func faults(o *Object, emit emit) {
	d := o.Detail
	if d == nil || !d.PageFaults.Known {
		return
	}
	own, ownMajor := d.PageFaults.Value, d.MajorFaults.Value
	if d.OwnPageFaults.Known {
		own, ownMajor = d.OwnPageFaults.Value, d.OwnMajorFaults.Value
	}
	emit(own, "pgfault", "container")
	emit(ownMajor, "pgmajfault", "container")
	emit(d.PageFaults.Value, "pgfault", "hierarchy")
	emit(d.MajorFaults.Value, "pgmajfault", "hierarchy")
}

func hugePages(o *Object) []usage.HugePages {
	if o.Detail == nil {
		return nil
	}
	return o.Detail.HugeTLB
}

func fs(f func(*FS, emit)) func(*Object, emit) {
	return func(o *Object, emit emit) {
		if o.FS != nil {
			f(o.FS, emit)
		}
	}
}

func io(get func(usage.Device) uint64) func(*Object, emit) {
	return func(o *Object, emit emit) {
		if o.Detail == nil {
			return
		}
		for i, d := range o.Detail.IO {
			emit(get(d), o.Detail.Devices[i])
		}
	}
}

func blkio(o *Object, emit emit) {
	if o.Detail == nil {
		return
	}
	for i, d := range o.Detail.IO {
		for _, operation := range slices.Sorted(maps.Keys(d.Bytes)) {
			emit(d.Bytes[operation], o.Detail.Devices[i], strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10), operation)
		}
	}
}

func each(get func(netns.Interface) uint64) func(*Object, emit) {
	return func(o *Object, emit emit) {
		for _, i := range o.Network {
			emit(get(i), i.Name)
		}
	}
}

func processes(f func(*stats.Processes, emit)) func(*Object, emit) {
	return func(o *Object, emit emit) {
		if o.Processes != nil {
			f(o.Processes, emit)
		}
	}
}

func stalled(get func(*stats.Detail) *usage.PSI) func(*Object, emit) {
	return func(o *Object, emit emit) {
		if o.Detail == nil {
			return
		}
		if p := get(o.Detail); p != nil {
			emit(whole(p.Full.Total))
		}
	}
}

func waiting(get func(*stats.Detail) *usage.PSI) func(*Object, emit) {
	return func(o *Object, emit emit) {
		if o.Detail == nil {
			return
		}
		if p := get(o.Detail); p != nil {
			emit(whole(p.Some.Total))
		}
	}
}
