// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cri/cadvisor"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/stats"
)

// ListMetricDescriptors implements RuntimeService.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: cadvisor.Descriptors()}, nil
}

// ListPodSandboxMetrics implements RuntimeService: those of ready sandboxes and running containers.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: s.listMetrics(ctx)}, nil
}

func (s *Server) listMetrics(ctx context.Context) []*runtimeapi.PodSandboxMetrics {
	all := s.c.Pods.Containers()
	of, fs, reported := containersOf(all), s.metricsFS(ctx), s.reported(ctx, all...)
	ready := slices.DeleteFunc(s.c.Pods.Sandboxes(), func(st *pod.SandboxStatus) bool { return !st.Ready })
	defer s.forgetOthers()
	out := make([]*runtimeapi.PodSandboxMetrics, len(ready))
	spread(len(ready), func(i int) { out[i] = s.sandboxMetrics(ctx, ready[i], of[ready[i].ID], fs, reported) })
	return out
}

// metricsFS is the file system of the writable layers; nil if it cannot be told.
func (s *Server) metricsFS(ctx context.Context) *cadvisor.FS {
	info, err := s.c.Images.FSInfo(ctx)
	if err != nil {
		s.c.Log.WarnContext(ctx, "metrics without the file system of writable layers", "error", err)
		return nil
	}
	device := info.Device
	if device == "" {
		device = info.Mountpoint
	}
	return &cadvisor.FS{Device: device, Capacity: uint64(info.CapacityBytes), Inodes: uint64(info.Inodes), InodesFree: uint64(info.InodesFree)}
}

func (s *Server) sandboxMetrics(ctx context.Context, st *pod.SandboxStatus, containers []*pod.ContainerStatus, fs *cadvisor.FS,
	reported map[string]stats.Usage) *runtimeapi.PodSandboxMetrics {
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: st.ID}
	md := st.Config.GetMetadata()
	o := cadvisor.Object{Labels: cadvisor.Labels{Namespace: md.GetNamespace(), Pod: md.GetName()}, Started: time.Unix(0, st.CreatedAt)}
	if d, err := s.c.Stats.PodDetail(st.ID, st.CgroupParent); err == nil {
		o.Detail, o.ID = &d, d.Path
	} else {
		s.unread(ctx, "sandbox", st.ID, err)
	}
	if st.Netns != "" {
		interfaces, err := s.c.Stats.Network(st.ID, st.Netns)
		if err != nil && s.isReady(st.ID) {
			s.c.Log.WarnContext(ctx, "metrics", "sandbox", st.ID, "error", err)
		}
		o.Network = interfaces
	}
	o.Now = time.Now()
	out.Metrics = cadvisor.Metrics(&o)
	for _, c := range containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out.ContainerMetrics = append(out.ContainerMetrics, s.containerMetrics(ctx, st, c, fs, reported))
		}
	}
	return out
}

// isReady tells whether a sandbox is ready still: trouble with one that has just been stopped is none.
func (s *Server) isReady(id string) bool {
	now, err := s.c.Pods.SandboxByID(id)
	return err == nil && now.Status().Ready
}

func (s *Server) containerMetrics(ctx context.Context, st *pod.SandboxStatus, c *pod.ContainerStatus, fs *cadvisor.FS, reported map[string]stats.Usage) *runtimeapi.ContainerMetrics {
	md := st.Config.GetMetadata()
	o := cadvisor.Object{Started: time.Unix(0, c.StartedAt), Labels: cadvisor.Labels{Container: c.Config.GetMetadata().GetName(), Name: c.ID,
		Image: s.imageSpec(c).GetImage(), Namespace: md.GetNamespace(), Pod: md.GetName()}}
	if d, err := s.c.Stats.ContainerDetail(c.ID, c.CgroupsPath); err == nil {
		if own, ok := reported[c.ID]; ok {
			d.Usage = own
		}
		o.Detail, o.ID = &d, d.Path
	} else {
		s.unread(ctx, "container", c.ID, err)
	}
	if p, err := s.c.Stats.Processes(c.CgroupsPath, c.PID); err == nil {
		o.Processes = &p
	} else {
		s.unread(ctx, "container", c.ID, err)
	}
	if fs != nil {
		own := *fs
		if layer, ok := s.c.Stats.Layer(c.ID, s.c.Images.WritableFolders(c.ID)...); ok {
			own.Layer = &layer
		}
		o.FS = &own
	}
	o.Now = time.Now()
	return &runtimeapi.ContainerMetrics{ContainerId: c.ID, Metrics: cadvisor.Metrics(&o)}
}
