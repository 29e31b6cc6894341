// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"strings"

	hierarchies "github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/cgroup/usage"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
)

// Stats reads what the container uses, in the form that containerd's own shim has for this host's cgroups.
func (c *containerd) Stats(_ context.Context, req *wire.ProcessRequest) (*wire.StatsResponse, error) {
	t, err := c.find(req.ID)
	if err != nil {
		return nil, err
	}
	mounts, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	h, err := hierarchies.FromMounts(mounts)
	if err != nil {
		return nil, err
	}
	path := t.group().path(mounts)
	if path == "" {
		return nil, rpc.Errorf(rpc.FailedPrecondition, "container %s has no cgroup", t.id)
	}
	files := usage.Of(h, path)
	defer files.Close()
	u, d, err := files.ReadAll()
	if err != nil {
		return nil, statsError(err)
	}
	if h.Mode() == hierarchies.Unified {
		return &wire.StatsResponse{Stats: wire.Any{TypeURL: "io.containerd.cgroups.v2.Metrics", Value: wire.Marshal(metricsV2(u, d))}}, nil
	}
	return &wire.StatsResponse{Stats: wire.Any{TypeURL: "io.containerd.cgroups.v1.Metrics", Value: wire.Marshal(metricsV1(u, d))}}, nil
}

func statsError(err error) error {
	if errors.Is(err, usage.ErrGone) {
		return rpc.Errorf(rpc.NotFound, "%v", err)
	}
	return err
}

// path is the cgroup's below the mount point of its hierarchy; empty: it is not known.
func (c cgroup) path(mounts map[string]string) string {
	for _, point := range mounts {
		if path, ok := strings.CutPrefix(c.procs, point+"/"); ok {
			return "/" + path
		}
	}
	return ""
}

func metricsV1(u usage.Usage, d usage.Detail) *wire.MetricsV1 {
	m := &wire.MetricsV1{
		PIDs: d.Tasks.Value, PIDLimit: limit(d.TasksMax),
		CPUTotal: u.CPU.Value, CPUKernel: d.System.Value, CPUUser: d.User.Value,
		Periods: d.Periods.Value, ThrottledPeriods: d.ThrottledPeriods.Value, Throttled: d.Throttled.Value,
		Memory: wire.MemoryEntry{Limit: u.MemoryLimit.Value, Usage: u.Memory.Value, Max: d.MaxUsage.Value, FailCount: d.FailCount.Value},
		Kernel: wire.MemoryEntry{Usage: d.Kernel.Value},
		Cache:  d.Cache.Value, RSS: u.RSS.Value, MappedFile: d.Mapped.Value, InactiveFile: u.InactiveFile.Value, ActiveFile: d.ActiveFile.Value,
		PageFaults: u.PageFaults.Value, MajorFaults: u.MajorFaults.Value, OOMKills: d.OOMKills.Value,
	}
	if u.Swap.Known { // v1 counts swap with memory
		m.Swap = wire.MemoryEntry{Limit: d.Limits.Swap.Value, Usage: u.Memory.Value + u.Swap.Value}
	}
	for _, device := range d.IO {
		for operation, n := range device.Bytes {
			m.IOBytes = append(m.IOBytes, wire.IOEntryV1{Operation: operation, Major: device.Major, Minor: device.Minor, Value: n})
		}
		m.IOs = append(m.IOs, wire.IOEntryV1{Operation: "Read", Major: device.Major, Minor: device.Minor, Value: device.Reads},
			wire.IOEntryV1{Operation: "Write", Major: device.Major, Minor: device.Minor, Value: device.Writes})
	}
	return m
}

func metricsV2(u usage.Usage, d usage.Detail) *wire.MetricsV2 {
	m := &wire.MetricsV2{
		PIDs: d.Tasks.Value, PIDLimit: limit(d.TasksMax),
		CPU: u.CPU.Value / 1000, CPUUser: d.User.Value / 1000, CPUSystem: d.System.Value / 1000,
		Periods: d.Periods.Value, ThrottledPeriods: d.ThrottledPeriods.Value, Throttled: d.Throttled.Value / 1000,
		Anon: u.RSS.Value, File: d.Cache.Value, FileMapped: d.Mapped.Value, InactiveFile: u.InactiveFile.Value, ActiveFile: d.ActiveFile.Value,
		PageFaults: u.PageFaults.Value, MajorFaults: u.MajorFaults.Value,
		Memory: u.Memory.Value, MemoryLimit: u.MemoryLimit.Value, Swap: u.Swap.Value, SwapLimit: u.SwapLimit.Value, MaxUsage: d.MaxUsage.Value,
		OOMKills: d.OOMKills.Value,
	}
	for _, device := range d.IO {
		m.IO = append(m.IO, wire.IOEntryV2{Major: device.Major, Minor: device.Minor, ReadBytes: device.ReadBytes, WriteBytes: device.WriteBytes,
			Reads: device.Reads, Writes: device.Writes})
	}
	return m
}

// limit is 0 for none, as containerd has it of tasks.
func limit(c usage.Counter) uint64 {
	if c.Value == usage.Unlimited {
		return 0
	}
	return c.Value
}
