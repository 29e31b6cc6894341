// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// resources renders CRI resources; zero values mean no limit. Huge page limits of 0, which a kubelet always sends for every page
// size, are left out: they limit nothing on hosts without hugetlb and make runtimes fail there.
func resources(r *runtimeapi.LinuxContainerResources) *specs.LinuxResources {
	out := &specs.LinuxResources{Unified: maps.Clone(r.GetUnified())}
	if cpu := (specs.LinuxCPU{Shares: positive(r.GetCpuShares()), Quota: nonZero(r.GetCpuQuota()), Period: positive(r.GetCpuPeriod()),
		Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}); cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}
	// A container with a memory limit and no word about swap gets none: else it would swap as much again.
	if memory := (specs.LinuxMemory{Limit: nonZero(r.GetMemoryLimitInBytes()),
		Swap: nonZero(cmp.Or(r.GetMemorySwapLimitInBytes(), r.GetMemoryLimitInBytes()))}); memory != (specs.LinuxMemory{}) {
		out.Memory = &memory
	}
	for _, h := range r.GetHugepageLimits() {
		if h.GetLimit() > 0 {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	return out
}

func nonZero(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}

func positive(n int64) *uint64 {
	if n <= 0 {
		return nil
	}
	u := uint64(n)
	return &u
}

// UpdateResources merges an update into what is in force: zero values leave a field as it is (CRI: UpdateContainerResources).
// It returns the merged resources, and the same as the OCI runtime wants them.
func UpdateResources(old, update *runtimeapi.LinuxContainerResources) (*specs.LinuxResources, *runtimeapi.LinuxContainerResources, error) {
	if err := validResources("linux", update); err != nil {
		return nil, nil, err
	}
	merged := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		merged = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}
	// Where swapping was forbidden by equal limits it stays so when only the memory's moves.
	if merged.MemorySwapLimitInBytes != 0 && merged.MemorySwapLimitInBytes == merged.MemoryLimitInBytes {
		merged.MemorySwapLimitInBytes = cmp.Or(update.GetMemoryLimitInBytes(), merged.MemorySwapLimitInBytes)
	}
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&merged.CpuPeriod, update.GetCpuPeriod()}, {&merged.CpuQuota, update.GetCpuQuota()}, {&merged.CpuShares, update.GetCpuShares()},
		{&merged.MemoryLimitInBytes, update.GetMemoryLimitInBytes()}, {&merged.MemorySwapLimitInBytes, update.GetMemorySwapLimitInBytes()},
		{&merged.OomScoreAdj, update.GetOomScoreAdj()},
	} {
		*f.to = cmp.Or(f.from, *f.to)
	}
	merged.CpusetCpus = cmp.Or(update.GetCpusetCpus(), merged.CpusetCpus)
	merged.CpusetMems = cmp.Or(update.GetCpusetMems(), merged.CpusetMems)
	if v := update.GetHugepageLimits(); len(v) > 0 {
		merged.HugepageLimits = v
	}
	if v := update.GetUnified(); len(v) > 0 {
		if merged.Unified == nil {
			merged.Unified = map[string]string{}
		}
		maps.Copy(merged.Unified, v)
	}
	if err := validSwap("linux", merged); err != nil {
		return nil, nil, err
	}
	return resources(merged), merged, nil
}

// SetResources puts resources into a spec that was made with others. Limits that the CRI has no word for stay.
func SetResources(s *specs.Spec, r *runtimeapi.LinuxContainerResources, host Host) {
	next := resources(r)
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	now := s.Linux.Resources
	now.CPU, now.Memory, now.HugepageLimits, now.Unified = next.CPU, next.Memory, next.HugepageLimits, next.Unified
	s.Process.OOMScoreAdj = oomScore(r.GetOomScoreAdj(), host)
}

const (
	minOOMScore, maxOOMScore = -1000, 1000
	minPeriod, maxPeriod     = 1000, 1000000 // the kernel's, in µs
)

var (
	cpuList  = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
	pageSize = regexp.MustCompile(`^[0-9]+[KMGT]?B$`)
	// unifiedKey is a file of a cgroup: controller.name. Nothing that could be a path (CVE-2023-6476 and its kin).
	unifiedKey = regexp.MustCompile(`^[a-z]+(\.[a-zA-Z0-9_]+)+$`)
)

// validResources refuses what the kernel would, before anything is made, and what could be more than a value.
func validResources(field string, r *runtimeapi.LinuxContainerResources) error {
	switch {
	case r.GetCpuShares() < 0:
		return invalid(field+".cpu_shares", "%d is negative", r.GetCpuShares())
	case r.GetCpuPeriod() != 0 && (r.GetCpuPeriod() < minPeriod || r.GetCpuPeriod() > maxPeriod):
		return invalid(field+".cpu_period", "%d is not in [%d, %d]", r.GetCpuPeriod(), minPeriod, maxPeriod)
	case r.GetCpuQuota() > 0 && r.GetCpuQuota() < minPeriod:
		return invalid(field+".cpu_quota", "%d is less than %d", r.GetCpuQuota(), minPeriod)
	case r.GetMemoryLimitInBytes() < -1:
		return invalid(field+".memory_limit_in_bytes", "%d is negative", r.GetMemoryLimitInBytes())
	case r.GetMemorySwapLimitInBytes() < -1:
		return invalid(field+".memory_swap_limit_in_bytes", "%d is negative", r.GetMemorySwapLimitInBytes())
	case r.GetOomScoreAdj() < minOOMScore || r.GetOomScoreAdj() > maxOOMScore:
		return invalid(field+".oom_score_adj", "%d is not in [%d, %d]", r.GetOomScoreAdj(), minOOMScore, maxOOMScore)
	case r.GetCpusetCpus() != "" && !cpuList.MatchString(r.GetCpusetCpus()):
		return invalid(field+".cpuset_cpus", "%q is no list of numbers", r.GetCpusetCpus())
	case r.GetCpusetMems() != "" && !cpuList.MatchString(r.GetCpusetMems()):
		return invalid(field+".cpuset_mems", "%q is no list of numbers", r.GetCpusetMems())
	}
	for i, h := range r.GetHugepageLimits() {
		if !pageSize.MatchString(h.GetPageSize()) {
			return invalid(fmt.Sprintf("%s.hugepage_limits[%d].page_size", field, i), "%q is none", h.GetPageSize())
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
		if !unifiedKey.MatchString(key) || strings.ContainsRune(r.GetUnified()[key], 0) {
			return invalid(field+".unified", "%q is no file of a cgroup", key)
		}
	}
	return nil
}

// validSwap: the swap limit is one of memory and swap together.
func validSwap(field string, r *runtimeapi.LinuxContainerResources) error {
	memory, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case swap > 0 && memory <= 0:
		return invalid(field+".memory_swap_limit_in_bytes", "%d wants a memory_limit_in_bytes too", swap)
	case swap > 0 && swap < memory:
		return invalid(field+".memory_swap_limit_in_bytes", "%d is less than memory_limit_in_bytes, which is part of it: %d", swap, memory)
	}
	return nil
}
