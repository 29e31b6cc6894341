// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func (h *Hierarchies) readLimits(path string) (Limits, error) {
	r := limitReader{h: h, path: path}
	var l Limits
	if h.mode == Unified {
		if weight := r.number("cpu", "cpu.weight"); weight > 0 {
			l.CPUShares = shares(uint64(weight))
		}
		quota, period, _ := strings.Cut(r.text("cpu", "cpu.max"), " ")
		l.CPUQuota, l.CPUPeriod = r.parse(quota), r.parse(period)
		l.Memory = r.number("memory", "memory.max")
		switch swap := r.text("memory", "memory.swap.max"); {
		case swap == "": // a kernel that does not account for it
		case swap == "max" || l.Memory < 0:
			l.Swap = -1
		default:
			l.Swap = l.Memory + r.parse(swap)
		}
	} else {
		l.CPUShares, l.CPUQuota, l.CPUPeriod = r.number("cpu", "cpu.shares"), r.number("cpu", "cpu.cfs_quota_us"), r.number("cpu", "cpu.cfs_period_us")
		l.Memory, l.Swap = r.number("memory", "memory.limit_in_bytes"), r.number("memory", "memory.memsw.limit_in_bytes")
	}
	l.CpusetCpus, l.CpusetMems = r.text("cpuset", "cpuset.cpus"), r.text("cpuset", "cpuset.mems")
	return l, r.err
}

// limitReader reads files of one cgroup and keeps the first error. A file that is not there is not known: an optional controller.
type limitReader struct {
	h    *Hierarchies
	path string
	err  error
}

func (r *limitReader) text(controller, file string) string {
	dir, ok := r.h.dir(controller, r.path)
	if !ok || r.err != nil {
		return ""
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.err = err
	}
	return strings.TrimSpace(string(data))
}

func (r *limitReader) number(controller, file string) int64 { return r.parse(r.text(controller, file)) }

// unlimited: from here on it is v1's way to say that there is no limit (2^63 in whole pages, of any size).
const unlimited = 1 << 62

func (r *limitReader) parse(text string) int64 {
	switch text {
	case "":
		return 0
	case "max":
		return -1
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%q: %w", text, err)
	}
	if n >= unlimited {
		return -1
	}
	return n
}
