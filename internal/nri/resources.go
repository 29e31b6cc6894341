// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"fmt"
	"maps"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fromCRI is resources as plugins want them; zero values are values that nobody gave.
func fromCRI(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{Cpu: &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}, Memory: &api.LinuxMemory{},
		Unified: maps.Clone(r.GetUnified())}
	if v := r.GetCpuShares(); v > 0 {
		out.Cpu.Shares = api.UInt64(uint64(v))
	}
	if v := r.GetCpuQuota(); v != 0 {
		out.Cpu.Quota = api.Int64(v)
	}
	if v := r.GetCpuPeriod(); v > 0 {
		out.Cpu.Period = api.UInt64(uint64(v))
	}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		out.Memory.Limit = api.Int64(v)
	}
	if v := r.GetMemorySwapLimitInBytes(); v != 0 {
		out.Memory.Swap = api.Int64(v)
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// toCRI is the reverse. Errors: a field that the CRI has no word for, which therefore would be lost.
func toCRI(r *api.LinuxResources) (*runtimeapi.LinuxContainerResources, error) {
	out := &runtimeapi.LinuxContainerResources{CpusetCpus: r.GetCpu().GetCpus(), CpusetMems: r.GetCpu().GetMems(),
		CpuShares: int64(r.GetCpu().GetShares().GetValue()), CpuQuota: r.GetCpu().GetQuota().GetValue(),
		CpuPeriod: int64(r.GetCpu().GetPeriod().GetValue()), MemoryLimitInBytes: r.GetMemory().GetLimit().GetValue(),
		MemorySwapLimitInBytes: r.GetMemory().GetSwap().GetValue(), Unified: maps.Clone(r.GetUnified())}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"pids", r.GetPids() != nil}, {"blockio_class", r.GetBlockioClass() != nil}, {"rdt_class", r.GetRdtClass() != nil},
		{"devices", len(r.GetDevices()) > 0}, {"cpu.realtime_runtime", r.GetCpu().GetRealtimeRuntime() != nil},
		{"cpu.realtime_period", r.GetCpu().GetRealtimePeriod() != nil}, {"memory.reservation", r.GetMemory().GetReservation() != nil},
		{"memory.swappiness", r.GetMemory().GetSwappiness() != nil},
	} {
		if f.set {
			return nil, fmt.Errorf("%s cannot be updated", f.name)
		}
	}
	return out, nil
}

func fromUpdate(u *api.ContainerUpdate) (Update, error) {
	resources, err := toCRI(u.GetLinux().GetResources())
	if err != nil {
		return Update{}, fmt.Errorf("update of container %s: %w", u.GetContainerId(), err)
	}
	return Update{Container: u.GetContainerId(), Resources: resources, IgnoreFailure: u.GetIgnoreFailure()}, nil
}

// specResources is what a spec's resources are in the CRI's words.
func specResources(r *specs.LinuxResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if r == nil {
		return out
	}
	if c := r.CPU; c != nil {
		out.CpuShares, out.CpuPeriod, out.CpuQuota = int64(value(c.Shares)), int64(value(c.Period)), value(c.Quota)
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	if m := r.Memory; m != nil {
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = value(m.Limit), value(m.Swap)
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.Pagesize, Limit: h.Limit})
	}
	out.Unified = maps.Clone(r.Unified)
	return out
}

func value[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}
