// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/proc"
)

// SetPodLimits implements pod.Host. Under systemd both systemd and the kernel are told: the one would take its own back at the next reload, and
// rounds what the other takes as it is.
func (k kernel) SetPodLimits(ctx context.Context, parent string, r *runtimeapi.LinuxContainerResources) error {
	path, err := cgroup.ParentPath(k.driver, parent)
	if err != nil {
		return err
	}
	want := limits(r)
	if k.slices != nil {
		if err := k.slices.SetLimits(ctx, filepath.Base(path), want, k.cgroups.Mode() == cgroup.Unified); err != nil {
			return err
		}
	}
	return k.cgroups.SetLimits(path, want)
}

func limits(r *runtimeapi.LinuxContainerResources) cgroup.Limits {
	return cgroup.Limits{CPUShares: r.GetCpuShares(), CPUQuota: r.GetCpuQuota(), CPUPeriod: r.GetCpuPeriod(), Memory: r.GetMemoryLimitInBytes(),
		Swap: r.GetMemorySwapLimitInBytes(), CpusetCpus: r.GetCpusetCpus(), CpusetMems: r.GetCpusetMems()}
}

// InForce implements pod.Host. What was asked for is kept where the kernel has the same in a form of its own: a weight that many shares
// have, a size in whole pages.
func (k kernel) InForce(cgroupsPath string, want *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	path, err := cgroup.ResolveOCI(cgroupsPath)
	if err != nil {
		return nil, err
	}
	got, err := k.cgroups.ReadLimits(path)
	if err != nil {
		return nil, err
	}
	out := proto.Clone(want).(*runtimeapi.LinuxContainerResources)
	for _, f := range []struct {
		field *int64
		got   int64
		same  cgroup.Limits
	}{
		{&out.CpuShares, got.CPUShares, cgroup.Limits{CPUShares: out.CpuShares}}, {&out.CpuQuota, got.CPUQuota, cgroup.Limits{CPUQuota: out.CpuQuota}},
		{&out.CpuPeriod, got.CPUPeriod, cgroup.Limits{CPUPeriod: out.CpuPeriod}}, {&out.MemoryLimitInBytes, got.Memory, cgroup.Limits{Memory: out.MemoryLimitInBytes}},
		{&out.MemorySwapLimitInBytes, got.Swap, cgroup.Limits{Swap: out.MemorySwapLimitInBytes}},
	} {
		if *f.field != 0 && f.got != 0 && !got.Same(f.same) {
			*f.field = f.got
		}
	}
	if !got.Same(cgroup.Limits{CpusetCpus: out.CpusetCpus}) {
		out.CpusetCpus = got.CpusetCpus
	}
	if !got.Same(cgroup.Limits{CpusetMems: out.CpusetMems}) {
		out.CpusetMems = got.CpusetMems
	}
	pids, err := k.cgroups.Pids(path)
	if err != nil || len(pids) == 0 {
		return out, err
	}
	if score, err := proc.OOMScore(pids[0]); err == nil && out.OomScoreAdj != 0 { // an error: it has ended
		out.OomScoreAdj = int64(score)
	}
	return out, nil
}

// maxRounds bounds how often new processes are looked for: a child that is forked while its parent is changed may miss the change.
const maxRounds = 10

// SetOOMScore implements pod.Host.
func (k kernel) SetOOMScore(cgroupsPath string, score int64) error {
	path, err := cgroup.ResolveOCI(cgroupsPath)
	if err != nil {
		return err
	}
	clamped := max(int(score), k.oomFloor)
	done := map[int]bool{}
	for range maxRounds {
		pids, err := k.cgroups.Pids(path)
		if err != nil {
			return err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return done[pid] })
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := proc.SetOOMScore(pid, clamped, func() bool { return k.isIn(pid, path) }); err != nil {
				return fmt.Errorf("oom_score_adj %d: %w", clamped, err)
			}
			done[pid] = true
		}
	}
	return nil
}

// isIn tells whether the process is in the cgroup or below it, in any hierarchy. The process is asked first: the cgroup may have thousands.
func (k kernel) isIn(pid int, path string) bool {
	all, err := proc.CgroupPaths(pid)
	if err != nil { // it has ended
		return false
	}
	for _, p := range all {
		if p == path || strings.HasPrefix(p, path+"/") {
			return true
		}
	}
	now, err := k.cgroups.Pids(path) // paths of another cgroup namespace look otherwise
	return err == nil && slices.Contains(now, pid)
}
