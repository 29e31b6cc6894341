// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Limits are a cgroup's resources, counted as the CRI does: shares as v1 has them, times in microseconds, sizes in bytes, Swap being memory
// and swap together. -1 is no limit, 0 or empty: not known, or to be left alone.
type Limits struct {
	CPUShares, CPUQuota, CPUPeriod int64
	Memory, Swap                   int64
	CpusetCpus, CpusetMems         string
}

// ErrNotTaken: the kernel did not refuse a limit, and yet has another one in force.
var ErrNotTaken = errors.New("limit is not in force")

// ReadLimits tells what is in force. What the kernel has no controller for is left at zero. fs.ErrNotExist: no such cgroup.
func (h *Hierarchies) ReadLimits(path string) (Limits, error) {
	if found, err := h.Exists(path); err != nil {
		return Limits{}, err
	} else if !found {
		return Limits{}, fmt.Errorf("read limits of cgroup %s: %w", path, fs.ErrNotExist)
	}
	l, err := h.readLimits(path)
	if err != nil {
		return Limits{}, fmt.Errorf("read limits of cgroup %s: %w", path, err)
	}
	return l, nil
}

// SetLimits sets those that are not zero, in an order in which the kernel takes them, and reads them back. It is idempotent.
// ErrNotTaken, fs.ErrNotExist (no such cgroup or controller).
func (h *Hierarchies) SetLimits(path string, want Limits) error {
	if err := own(path); err != nil {
		return fmt.Errorf("set limits of cgroup %q: %w", path, err)
	}
	before, err := h.ReadLimits(path)
	if err != nil {
		return err
	}
	for _, w := range h.writes(want, before) {
		if err := h.write(path, w); err != nil {
			return fmt.Errorf("set limits of cgroup %s: %w", path, err)
		}
	}
	got, err := h.ReadLimits(path)
	if err != nil {
		return err
	}
	if field := got.lacks(want); field != "" {
		return fmt.Errorf("set limits of cgroup %s: %s: %w", path, field, ErrNotTaken)
	}
	return nil
}

// setting is one value for one file of one controller.
type setting struct {
	controller, file, value string
}

func (h *Hierarchies) dir(controller, path string) (string, bool) {
	if h.mode == Unified {
		return filepath.Join(h.unified, path), true
	}
	point, ok := h.controllers[controller]
	return filepath.Join(point, path), ok
}

func (h *Hierarchies) write(path string, s setting) error {
	dir, ok := h.dir(s.controller, path)
	if !ok {
		return fmt.Errorf("no %s controller: %w", s.controller, fs.ErrNotExist)
	}
	return writeFile(filepath.Join(dir, s.file), s.value)
}

// writes puts what is wanted into files, in an order in which no value in between contradicts another.
func (h *Hierarchies) writes(want, before Limits) []setting {
	if h.mode == Unified {
		return unifiedWrites(want, before)
	}
	var all []setting
	add := func(controller, file string, value int64) {
		if value != 0 {
			all = append(all, setting{controller, file, strconv.FormatInt(value, 10)})
		}
	}
	add("cpu", "cpu.shares", want.CPUShares)
	// The ratio of the two must fit into the parent's at every moment: first the one that lowers it.
	if want.CPUPeriod >= before.CPUPeriod {
		add("cpu", "cpu.cfs_period_us", want.CPUPeriod)
		add("cpu", "cpu.cfs_quota_us", want.CPUQuota)
	} else {
		add("cpu", "cpu.cfs_quota_us", want.CPUQuota)
		add("cpu", "cpu.cfs_period_us", want.CPUPeriod)
	}
	// Memory and swap together are never less than the memory alone.
	if want.Memory == -1 || before.Swap != -1 && want.Memory > before.Swap {
		add("memory", "memory.memsw.limit_in_bytes", want.Swap)
		add("memory", "memory.limit_in_bytes", want.Memory)
	} else {
		add("memory", "memory.limit_in_bytes", want.Memory)
		add("memory", "memory.memsw.limit_in_bytes", want.Swap)
	}
	return append(all, cpusets(want)...)
}

func cpusets(want Limits) (all []setting) {
	if want.CpusetCpus != "" {
		all = append(all, setting{"cpuset", "cpuset.cpus", want.CpusetCpus})
	}
	if want.CpusetMems != "" {
		all = append(all, setting{"cpuset", "cpuset.mems", want.CpusetMems})
	}
	return all
}

func unifiedWrites(want, before Limits) []setting {
	var all []setting
	if want.CPUShares != 0 {
		all = append(all, setting{"cpu", "cpu.weight", strconv.FormatUint(Weight(want.CPUShares), 10)})
	}
	if want.CPUQuota != 0 || want.CPUPeriod != 0 {
		quota, period := first(want.CPUQuota, before.CPUQuota, -1), first(want.CPUPeriod, before.CPUPeriod, defaultPeriod)
		all = append(all, setting{"cpu", "cpu.max", orMax(quota) + " " + strconv.FormatInt(period, 10)})
	}
	if want.Memory != 0 {
		all = append(all, setting{"memory", "memory.max", orMax(want.Memory)})
	}
	if want.Swap != 0 {
		all = append(all, setting{"memory", "memory.swap.max", orMax(swapAlone(want.Swap, first(want.Memory, before.Memory)))})
	}
	return append(all, cpusets(want)...)
}

// defaultPeriod is the kernel's, in µs.
const defaultPeriod = 100000

func first(values ...int64) int64 {
	for _, v := range values {
		if v != 0 {
			return v
		}
	}
	return 0
}

func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// swapAlone is the swap of a limit of memory and swap together.
func swapAlone(both, memory int64) int64 {
	if both < 0 || memory < 0 {
		return -1
	}
	return max(both-memory, 0)
}

// Weight is the cpu.weight of CPU shares, by the formula that runc 1.3 and the kubelet have agreed on: it maps 2 to 1, 1024 to 100 and 262144
// to 10000, with a curve between them (github.com/opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value).
func Weight(shares int64) uint64 {
	const least, most = 2, 262144
	switch {
	case shares <= least:
		return 1
	case shares >= most:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// shares are some that have the weight; of many, those in the middle of Weight's curve.
func shares(weight uint64) int64 {
	low, high := int64(2), int64(262144)
	for low < high {
		if middle := (low + high) / 2; Weight(middle) < weight {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

// lacks names the first limit that is wanted and not in force. Sizes are counted in pages.
func (l Limits) lacks(want Limits) string {
	page := int64(os.Getpagesize())
	for _, f := range []struct {
		name      string
		got, want int64
	}{
		{"cpu shares", int64(Weight(l.CPUShares)), int64(Weight(want.CPUShares))}, {"cpu quota", l.CPUQuota, want.CPUQuota}, {"cpu period", l.CPUPeriod, want.CPUPeriod},
		{"memory", pages(l.Memory, page), pages(want.Memory, page)}, {"memory and swap", pages(l.Swap, page), pages(want.Swap, page)},
	} {
		if f.name == "cpu shares" && want.CPUShares == 0 {
			continue
		}
		if f.want != 0 && f.got != f.want {
			return fmt.Sprintf("%s is %d, want %d", f.name, f.got, f.want)
		}
	}
	if want.CpusetCpus != "" && !sameSet(l.CpusetCpus, want.CpusetCpus) {
		return fmt.Sprintf("cpus are %q, want %q", l.CpusetCpus, want.CpusetCpus)
	}
	if want.CpusetMems != "" && !sameSet(l.CpusetMems, want.CpusetMems) {
		return fmt.Sprintf("memory nodes are %q, want %q", l.CpusetMems, want.CpusetMems)
	}
	return ""
}

func pages(n, page int64) int64 {
	if n < 0 {
		return n
	}
	return n / page
}

// Same tells whether the limits that want has are those in force, whatever the form that the kernel shows them in.
func (l Limits) Same(want Limits) bool { return l.lacks(want) == "" }

// sameSet compares two lists of numbers and ranges.
func sameSet(a, b string) bool {
	if strings.TrimSpace(a) == strings.TrimSpace(b) {
		return true
	}
	x, err1 := numbers(a)
	y, err2 := numbers(b)
	if err1 != nil || err2 != nil || len(x) != len(y) {
		return false
	}
	for n := range x {
		if !y[n] {
			return false
		}
	}
	return true
}

// maxCPU bounds the numbers of CPUs and memory nodes; the kernel has at most 8192 of them.
const maxCPU = 1 << 16

func numbers(list string) (map[int]bool, error) {
	all := map[int]bool{}
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		if a < 0 || b > maxCPU {
			return nil, syscall.ERANGE
		}
		for n := a; n <= b; n++ {
			all[n] = true
		}
	}
	return all, nil
}
