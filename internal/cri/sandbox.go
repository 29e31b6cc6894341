// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/filter"
	"github.com/berth-run/berth/internal/pod"
)

// RunPodSandbox implements RuntimeService.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	id, err := s.c.Pods.RunSandbox(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox implements RuntimeService.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.c.Pods.StopSandbox(ctx, r.GetPodSandboxId())
}

// RemovePodSandbox implements RuntimeService.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, s.c.Pods.RemoveSandbox(ctx, r.GetPodSandboxId())
}

// ListPodSandbox implements RuntimeService.
func (s *Server) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.listSandboxes(r.GetFilter())}, nil
}

func (s *Server) listSandboxes(f *runtimeapi.PodSandboxFilter) (out []*runtimeapi.PodSandbox) {
	for _, st := range s.c.Pods.Sandboxes() {
		if !filter.ID(st.ID, f.GetId()) || f.GetState() != nil && f.GetState().GetState() != sandboxState(st) ||
			!filter.Labels(st.Config.GetLabels(), f.GetLabelSelector()) {
			continue
		}
		out = append(out, &runtimeapi.PodSandbox{Id: st.ID, Metadata: st.Config.GetMetadata(), State: sandboxState(st),
			CreatedAt: st.CreatedAt, Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations(), RuntimeHandler: st.Handler})
	}
	return out
}

// PodSandboxStatus implements RuntimeService.
func (s *Server) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	sandbox, err := s.c.Pods.SandboxByID(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	// Of one instant, whose time is ordered with that of events: evented PLEG compares them.
	st, containers, at := sandbox.Snapshot()
	out := &runtimeapi.PodSandboxStatusResponse{Status: sandboxStatus(st), Timestamp: at, ContainersStatuses: s.containerStatuses(containers)}
	if r.GetVerbose() {
		out.Info, err = verbose(map[string]any{"id": st.ID, "netns": st.Netns, "cgroupParent": st.CgroupParent, "stoppedAt": st.StoppedAt,
			"why": st.Why, "config": st.Config, "resources": st.Resources, "overhead": st.Overhead})
	}
	return out, err
}

// UpdatePodSandboxResources implements RuntimeService.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, s.c.Pods.UpdateSandboxResources(ctx, r.GetPodSandboxId(), r.GetResources(), r.GetOverhead())
}

// PortForward implements RuntimeService.
func (s *Server) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	url, err := s.c.Streams.PortForward(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

func sandboxState(st *pod.SandboxStatus) runtimeapi.PodSandboxState {
	if st.Ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxStatus(st *pod.SandboxStatus) *runtimeapi.PodSandboxStatus {
	c := st.Config
	out := &runtimeapi.PodSandboxStatus{Id: st.ID, Metadata: c.GetMetadata(), State: sandboxState(st), CreatedAt: st.CreatedAt,
		Labels: c.GetLabels(), Annotations: c.GetAnnotations(), RuntimeHandler: st.Handler, Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: c.GetLinux().GetSecurityContext().GetNamespaceOptions()}}}
	for i, ip := range st.IPs {
		if i == 0 {
			out.Network.Ip = ip.String()
		} else {
			out.Network.AdditionalIps = append(out.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
		}
	}
	return out
}
