// SPDX-License-Identifier: Apache-2.0

package spec

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodResources are those of a pod's cgroup: what its containers have together and the sandbox's overhead on top (CRI:
// UpdatePodSandboxResourcesRequest; KEP-688). Where the containers have no limit, neither has the pod. ErrInvalid.
func PodResources(containers, overhead *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	for _, r := range []struct {
		field string
		value *runtimeapi.LinuxContainerResources
	}{{"resources", containers}, {"overhead", overhead}} {
		if err := validResources(r.field, r.value); err != nil {
			return nil, err
		}
		if err := validSwap(r.field, r.value); err != nil {
			return nil, err
		}
	}
	c, o := containers, overhead
	return &runtimeapi.LinuxContainerResources{
		CpuShares: plus(c.GetCpuShares(), o.GetCpuShares()), CpuPeriod: c.GetCpuPeriod(),
		CpuQuota:           plus(c.GetCpuQuota(), samePeriod(o, c.GetCpuPeriod())),
		MemoryLimitInBytes: plus(c.GetMemoryLimitInBytes(), o.GetMemoryLimitInBytes()),
		// An overhead without a word about swap has none: both sides of the sum grow by its memory.
		MemorySwapLimitInBytes: plus(c.GetMemorySwapLimitInBytes(), max(o.GetMemorySwapLimitInBytes(), o.GetMemoryLimitInBytes())),
		CpusetCpus:             c.GetCpusetCpus(), CpusetMems: c.GetCpusetMems(),
	}, nil
}

// plus adds to a limit; none (0, -1) stays none.
func plus(limit, more int64) int64 {
	if limit <= 0 || more <= 0 {
		return limit
	}
	if limit+more < limit {
		return -1
	}
	return limit + more
}

// samePeriod is the quota of r for another period.
func samePeriod(r *runtimeapi.LinuxContainerResources, period int64) int64 {
	if r.GetCpuQuota() <= 0 || r.GetCpuPeriod() <= 0 || period <= 0 {
		return r.GetCpuQuota()
	}
	return int64(float64(r.GetCpuQuota()) * float64(period) / float64(r.GetCpuPeriod()))
}
