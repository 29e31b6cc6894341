// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"bytes"
	"os"
	"slices"
	"strings"
)

// v2 reads cgroup v2, whose figures are always with the cgroups below. d may be nil.
func (r *reader) v2(u *Usage, d *Detail) {
	pairs(r.read("", "cpu.stat"), func(key []byte, n uint64) {
		if string(key) == "usage_usec" {
			u.CPU = known(n * 1000)
		} else if d != nil {
			d.v2CPU(key, n)
		}
	})
	u.CPUAt = now()
	u.Memory = r.number("", "memory.current")
	u.MemoryAt = now()
	u.MemoryLimit = r.number("", "memory.max")
	u.Swap = r.number("", "memory.swap.current")
	u.SwapLimit = r.number("", "memory.swap.max")
	pairs(r.read("", "memory.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "anon":
			u.RSS = known(n)
		case "inactive_file":
			u.InactiveFile = known(n)
		case "pgfault":
			u.PageFaults = known(n)
		case "pgmajfault":
			u.MajorFaults = known(n)
		default:
			if d != nil {
				d.v2Memory(key, n)
			}
		}
	})
	r.psi(u)
	if d != nil {
		d.Limits.Memory, d.Limits.Swap = u.MemoryLimit, u.SwapLimit
		r.v2Detail(d)
	}
}

func (d *Detail) v2CPU(key []byte, n uint64) {
	switch string(key) {
	case "user_usec":
		d.User = known(n * 1000)
	case "system_usec":
		d.System = known(n * 1000)
	case "nr_periods":
		d.Periods = known(n)
	case "nr_throttled":
		d.ThrottledPeriods = known(n)
	case "throttled_usec":
		d.Throttled = known(n * 1000)
	case "nr_bursts":
		d.Bursts = known(n)
	case "burst_usec":
		d.Burst = known(n * 1000)
	}
}

func (d *Detail) v2Memory(key []byte, n uint64) {
	switch string(key) {
	case "file":
		d.Cache = known(n)
	case "file_mapped":
		d.Mapped = known(n)
	case "active_file":
		d.ActiveFile = known(n)
	case "kernel":
		d.Kernel = known(n)
	}
}

func (r *reader) v2Detail(d *Detail) {
	d.MaxUsage = r.number("", "memory.peak")
	pairs(r.read("", "memory.events"), func(key []byte, n uint64) {
		switch string(key) {
		case "max":
			d.FailCount = known(n)
		case "oom_kill":
			d.OOMKills = known(n)
		}
	})
	d.IO = r.v2IO()
	d.HugeTLB = r.hugeTLB("", "current", "")
	d.Tasks = r.number("", "pids.current")
	d.TasksMax = r.number("", "pids.max")
	d.Limits.Shares, d.Limits.MemoryReservation = r.shares(), r.number("", "memory.min")
	d.Limits.Quota, d.Limits.Period = r.cpuMax()
}

// shares turns cpu.weight back into v1's shares, by the formula of runc and systemd.
func (r *reader) shares() Counter {
	weight := r.number("", "cpu.weight")
	if !weight.Known || weight.Value == 0 || weight.Value == Unlimited {
		return Counter{}
	}
	return known(2 + (weight.Value-1)*262142/9999)
}

func (r *reader) cpuMax() (quota, period Counter) {
	fields := bytes.Fields(r.read("", "cpu.max"))
	if len(fields) != 2 {
		return quota, period
	}
	if n, err := number(fields[0]); err == nil {
		quota = known(n)
	}
	if n, err := number(fields[1]); err == nil {
		period = known(n)
	}
	return quota, period
}

// v2IO reads lines such as "8:0 rbytes=90112 wbytes=0 rios=3 wios=0 dbytes=0 dios=0".
func (r *reader) v2IO() []Device {
	var devices []Device
	data := r.read("", "io.stat")
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		major, minor, ok := device(fields[0])
		if !ok {
			continue
		}
		d := deviceOf(&devices, major, minor)
		for _, field := range fields[1:] {
			key, value, _ := bytes.Cut(field, []byte{'='})
			if n, ok := digits(value); ok {
				d.set(string(key), n)
			}
		}
	}
	return devices
}

func (d *Device) set(key string, n uint64) {
	switch key {
	case "rbytes":
		d.ReadBytes, d.Bytes["Read"] = n, n
	case "wbytes":
		d.WriteBytes, d.Bytes["Write"] = n, n
	case "rios":
		d.Reads = n
	case "wios":
		d.Writes = n
	}
}

// hugeTLB reads the use of each size of huge pages that the kernel has.
func (r *reader) hugeTLB(controller, used, peak string) []HugePages {
	if r.f.pages == nil {
		r.f.pages = r.hugePageSizes(controller, used)
	}
	all := make([]HugePages, 0, len(r.f.pages))
	for _, size := range r.f.pages {
		h := HugePages{Size: size, Used: r.number(controller, "hugetlb."+size+"."+used).Value}
		if peak != "" {
			h.MaxUsage = r.number(controller, "hugetlb."+size+"."+peak)
		}
		all = append(all, h)
	}
	return all
}

// hugePageSizes are as the kernel names them, sorted; not nil where the folder could be read.
func (r *reader) hugePageSizes(controller, used string) []string {
	dir, ok := r.f.h.Folder(controller, r.f.path)
	if !ok || r.err != nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // that the cgroup is gone, its other files tell
	}
	sizes := []string{}
	for _, e := range entries {
		size, ok := strings.CutPrefix(e.Name(), "hugetlb.")
		if !ok {
			continue
		}
		if size, ok = strings.CutSuffix(size, "."+used); ok && !strings.Contains(size, ".") {
			sizes = append(sizes, size)
		}
	}
	slices.Sort(sizes)
	return sizes
}
