// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/filter"
	"github.com/berth-run/berth/internal/linux/cgroup/usage"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/stats"
)

// ContainerStats implements RuntimeService. A container that does not run has attributes and a writable layer only.
func (s *Server) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.c.Pods.ContainerByID(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	st := c.Status()
	defer s.forgetOthers()
	return &runtimeapi.ContainerStatsResponse{Stats: s.containerStats(ctx, st, s.layerFS(ctx), s.reported(ctx, st))}, nil
}

// ListContainerStats implements RuntimeService: all running containers (CRI).
func (s *Server) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: s.listContainerStats(ctx, r.GetFilter())}, nil
}

func (s *Server) listContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	var asked []*pod.ContainerStatus
	fs := s.layerFS(ctx)
	for _, st := range s.c.Pods.Containers() {
		if st.State == runtimeapi.ContainerState_CONTAINER_RUNNING && filter.ID(st.ID, f.GetId()) &&
			filter.ID(st.SandboxID, f.GetPodSandboxId()) && filter.Labels(st.Config.GetLabels(), f.GetLabelSelector()) {
			asked = append(asked, st)
		}
	}
	defer s.forgetOthers()
	out := make([]*runtimeapi.ContainerStats, len(asked))
	reported := s.reported(ctx, asked...)
	spread(len(asked), func(i int) { out[i] = s.containerStats(ctx, asked[i], fs, reported) })
	return out
}

// forgetOthers lets go of what is kept for pods and containers that do not run any more; also of what was opened for one that ended while it was
// looked at, of which nobody tells again.
func (s *Server) forgetOthers() {
	containers := s.c.Pods.Containers()
	ids := make(map[string]bool, 2*len(containers))
	for _, c := range containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			ids[c.ID] = true
		}
	}
	for _, p := range s.c.Pods.Sandboxes() {
		if p.Ready {
			ids[p.ID] = true
		}
	}
	s.c.Stats.Keep(ids)
}

// layerFS identifies the file system of the writable layers, which they share with images.
func (s *Server) layerFS(ctx context.Context) *runtimeapi.FilesystemIdentifier {
	info, err := s.c.Images.FSInfo(ctx)
	if err != nil {
		s.c.Log.WarnContext(ctx, "statistics without the file system of writable layers", "error", err)
		return nil
	}
	return &runtimeapi.FilesystemIdentifier{Mountpoint: info.Mountpoint}
}

func (s *Server) containerStats(ctx context.Context, st *pod.ContainerStatus, fs *runtimeapi.FilesystemIdentifier, reported map[string]stats.Usage) *runtimeapi.ContainerStats {
	out := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: st.ID, Metadata: st.Config.GetMetadata(),
		Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations()}}
	if layer, ok := s.c.Stats.Layer(st.ID, s.c.Images.WritableFolders(st.ID)...); ok {
		out.WritableLayer = &runtimeapi.FilesystemUsage{Timestamp: layer.At.UnixNano(), FsId: fs,
			UsedBytes: uint64Value(layer.Bytes), InodesUsed: uint64Value(layer.Inodes)}
	}
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return out
	}
	u, err := s.c.Stats.Container(st.ID, st.CgroupsPath)
	if own, ok := reported[st.ID]; ok {
		u, err = own, nil
	}
	if err != nil {
		s.unread(ctx, "container", st.ID, err)
		return out
	}
	out.Cpu, out.Memory, out.Swap, out.Io = cpuUsage(u), memoryUsage(u), swapUsage(u), ioUsage(u)
	return out
}

// reported asks the runtimes of containers whose cgroups tell nothing since they live in a sandbox: a container that runs has used some CPU time.
func (s *Server) reported(ctx context.Context, containers ...*pod.ContainerStatus) map[string]stats.Usage {
	var questions []stats.Question
	for _, c := range containers {
		if c.SandboxHandler == "" || c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if u, err := s.c.Stats.Container(c.ID, c.CgroupsPath); err != nil || u.CPU.Value == 0 {
			questions = append(questions, stats.Question{Handler: c.SandboxHandler, ID: c.ID})
		}
	}
	return s.c.Stats.Reported(ctx, questions)
}

// unread notes that a cgroup cannot be read. That one is gone is no news: its last process has just ended, or a sandboxed runtime has none and told nothing.
func (s *Server) unread(ctx context.Context, what, id string, err error) {
	if !errors.Is(err, usage.ErrGone) {
		s.c.Log.WarnContext(ctx, "statistics", what, id, "error", err)
	}
}

// PodSandboxStats implements RuntimeService. A sandbox that is not ready has attributes only.
func (s *Server) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	sandbox, err := s.c.Pods.SandboxByID(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st := sandbox.Status()
	defer s.forgetOthers()
	containers := containersOf(s.c.Pods.Containers())[st.ID]
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.sandboxStats(ctx, st, containers, s.layerFS(ctx), s.reported(ctx, containers...))}, nil
}

// ListPodSandboxStats implements RuntimeService: all ready sandboxes.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: s.listSandboxStats(ctx, r.GetFilter())}, nil
}

func (s *Server) listSandboxStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	var asked []*pod.SandboxStatus
	var within []*pod.ContainerStatus
	fs, of := s.layerFS(ctx), containersOf(s.c.Pods.Containers())
	for _, st := range s.c.Pods.Sandboxes() {
		if st.Ready && filter.ID(st.ID, f.GetId()) && filter.Labels(st.Config.GetLabels(), f.GetLabelSelector()) {
			asked, within = append(asked, st), append(within, of[st.ID]...)
		}
	}
	defer s.forgetOthers()
	out := make([]*runtimeapi.PodSandboxStats, len(asked))
	reported := s.reported(ctx, within...)
	spread(len(asked), func(i int) { out[i] = s.sandboxStats(ctx, asked[i], of[asked[i].ID], fs, reported) })
	return out
}

// containersOf sorts containers by their sandbox.
func containersOf(all []*pod.ContainerStatus) map[string][]*pod.ContainerStatus {
	of := map[string][]*pod.ContainerStatus{}
	for _, c := range all {
		of[c.SandboxID] = append(of[c.SandboxID], c)
	}
	return of
}

func (s *Server) sandboxStats(ctx context.Context, st *pod.SandboxStatus, containers []*pod.ContainerStatus, fs *runtimeapi.FilesystemIdentifier,
	reported map[string]stats.Usage) *runtimeapi.PodSandboxStats {
	// The kubelet takes it that there is a Linux part.
	linux := &runtimeapi.LinuxPodSandboxStats{}
	out := &runtimeapi.PodSandboxStats{Linux: linux, Attributes: &runtimeapi.PodSandboxAttributes{Id: st.ID, Metadata: st.Config.GetMetadata(),
		Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations()}}
	if !st.Ready {
		return out
	}
	if u, err := s.c.Stats.Pod(st.ID, st.CgroupParent); err == nil {
		linux.Cpu, linux.Memory, linux.Io = cpuUsage(u), memoryUsage(u), ioUsage(u)
		if u.Tasks.Known {
			linux.Process = &runtimeapi.ProcessUsage{Timestamp: u.MemoryAt.UnixNano(), ProcessCount: counter(u.Tasks)}
		}
	} else {
		s.unread(ctx, "sandbox", st.ID, err)
	}
	linux.Network = s.networkUsage(ctx, st)
	for _, c := range containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			linux.Containers = append(linux.Containers, s.containerStats(ctx, c, fs, reported))
		}
	}
	return out
}

// defaultInterface is what CNI's first network is attached as.
const defaultInterface = "eth0"

// networkUsage is nil with host network: the counters would be the node's.
func (s *Server) networkUsage(ctx context.Context, st *pod.SandboxStatus) *runtimeapi.NetworkUsage {
	if st.Netns == "" {
		return nil
	}
	all, err := s.c.Stats.Network(st.ID, st.Netns)
	if err != nil {
		if s.isReady(st.ID) {
			s.c.Log.WarnContext(ctx, "statistics", "sandbox", st.ID, "error", err)
		}
		return nil
	}
	out := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, i := range all {
		if i.Name == defaultInterface {
			out.DefaultInterface = interfaceUsage(i)
		} else {
			out.Interfaces = append(out.Interfaces, interfaceUsage(i))
		}
	}
	return out
}

func interfaceUsage(i netns.Interface) *runtimeapi.NetworkInterfaceUsage {
	return &runtimeapi.NetworkInterfaceUsage{Name: i.Name, RxBytes: uint64Value(i.RxBytes), RxErrors: uint64Value(i.RxErrors),
		TxBytes: uint64Value(i.TxBytes), TxErrors: uint64Value(i.TxErrors)}
}

func cpuUsage(u stats.Usage) *runtimeapi.CpuUsage {
	if !u.CPU.Known {
		return nil
	}
	return &runtimeapi.CpuUsage{Timestamp: u.CPUAt.UnixNano(), UsageCoreNanoSeconds: counter(u.CPU), UsageNanoCores: counter(u.NanoCores),
		Psi: psiStats(u.CPUPressure)}
}

func memoryUsage(u stats.Usage) *runtimeapi.MemoryUsage {
	if !u.Memory.Known {
		return nil
	}
	return &runtimeapi.MemoryUsage{Timestamp: u.MemoryAt.UnixNano(), WorkingSetBytes: counter(u.WorkingSet()), AvailableBytes: counter(u.Available()),
		UsageBytes: counter(u.Memory), RssBytes: counter(u.RSS), PageFaults: counter(u.PageFaults), MajorPageFaults: counter(u.MajorFaults),
		Psi: psiStats(u.MemoryPressure)}
}

func swapUsage(u stats.Usage) *runtimeapi.SwapUsage {
	if !u.Swap.Known {
		return nil
	}
	return &runtimeapi.SwapUsage{Timestamp: u.MemoryAt.UnixNano(), SwapAvailableBytes: counter(u.SwapAvailable()), SwapUsageBytes: counter(u.Swap)}
}

func ioUsage(u stats.Usage) *runtimeapi.IoUsage {
	if u.IOPressure == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: u.MemoryAt.UnixNano(), Psi: psiStats(u.IOPressure)}
}

func psiStats(p *usage.PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l usage.Pressure) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: l.Total, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &runtimeapi.PsiStats{Full: line(p.Full), Some: line(p.Some)}
}

func counter(c usage.Counter) *runtimeapi.UInt64Value {
	if !c.Known {
		return nil
	}
	return uint64Value(c.Value)
}

func uint64Value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
