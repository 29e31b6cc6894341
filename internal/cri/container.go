// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/filter"
	"github.com/berth-run/berth/internal/pod"
)

// CreateContainer implements RuntimeService.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	id, err := s.c.Pods.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer implements RuntimeService.
func (s *Server) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return &runtimeapi.StartContainerResponse{}, s.c.Pods.StartContainer(ctx, r.GetContainerId())
}

// maxGrace bounds a grace period, so that adding it to the clock cannot overflow.
const maxGrace = int64(100 * 365 * 24 * 3600)

// StopContainer implements RuntimeService.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	grace := time.Duration(min(max(r.GetTimeout(), 0), maxGrace)) * time.Second
	return &runtimeapi.StopContainerResponse{}, s.c.Pods.StopContainer(ctx, r.GetContainerId(), grace)
}

// RemoveContainer implements RuntimeService.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return &runtimeapi.RemoveContainerResponse{}, s.c.Pods.RemoveContainer(ctx, r.GetContainerId())
}

// ListContainers implements RuntimeService.
func (s *Server) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.listContainers(r.GetFilter())}, nil
}

func (s *Server) listContainers(f *runtimeapi.ContainerFilter) (out []*runtimeapi.Container) {
	for _, st := range s.c.Pods.Containers() {
		if !filter.ID(st.ID, f.GetId()) || !filter.ID(st.SandboxID, f.GetPodSandboxId()) ||
			f.GetState() != nil && f.GetState().GetState() != st.State || !filter.Labels(st.Config.GetLabels(), f.GetLabelSelector()) {
			continue
		}
		out = append(out, &runtimeapi.Container{Id: st.ID, PodSandboxId: st.SandboxID, Metadata: st.Config.GetMetadata(),
			Image: st.Config.GetImage(), ImageRef: st.ImageRef, ImageId: st.ImageID, State: st.State, CreatedAt: st.CreatedAt,
			Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations()})
	}
	return out
}

// ContainerStatus implements RuntimeService.
func (s *Server) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.c.Pods.ContainerByID(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	st := c.Status()
	out := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(st)}
	if r.GetVerbose() {
		out.Info, err = verbose(map[string]any{"sandboxID": st.SandboxID, "pid": st.PID, "config": st.Config})
	}
	return out, err
}

func (s *Server) containerStatus(st *pod.ContainerStatus) *runtimeapi.ContainerStatus {
	c := st.Config
	out := &runtimeapi.ContainerStatus{Id: st.ID, Metadata: c.GetMetadata(), State: st.State, CreatedAt: st.CreatedAt, StartedAt: st.StartedAt,
		FinishedAt: st.FinishedAt, ExitCode: st.ExitCode, Image: s.imageSpec(st), ImageRef: st.ImageRef, ImageId: st.ImageID,
		Reason: st.Reason, Message: st.Message, Labels: c.GetLabels(), Annotations: c.GetAnnotations(), Mounts: mounts(st), LogPath: st.LogPath,
		Resources: &runtimeapi.ContainerResources{Linux: st.Resources}, StopSignal: stopSignal(st.StopSignal),
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: st.UID, Gid: st.GID, SupplementalGroups: st.Groups}}}
	return out
}

// mounts are those of the config, with the image that each image volume shows (Mount.image.image_ref).
func mounts(st *pod.ContainerStatus) []*runtimeapi.Mount {
	all := st.Config.GetMounts()
	if len(st.MountImages) == 0 {
		return all
	}
	all = slices.Clone(all)
	next := 0
	for i, m := range all {
		if m.GetImage() == nil || next == len(st.MountImages) {
			continue
		}
		all[i] = proto.Clone(m).(*runtimeapi.Mount) // the config is nobody's to change
		all[i].Image.ImageRef = st.MountImages[next]
		next++
	}
	return all
}

// imageSpec names the image by a tag, as people know it, where there is one: the kubelet asks for it by ID.
func (s *Server) imageSpec(st *pod.ContainerStatus) *runtimeapi.ImageSpec {
	asked := st.Config.GetImage()
	name := asked.GetImage()
	if im, err := s.c.Images.Status(st.ImageID); err == nil && len(im.RepoTags) > 0 {
		name = im.RepoTags[0]
	} else if u := asked.GetUserSpecifiedImage(); u != "" {
		name = u
	}
	return &runtimeapi.ImageSpec{Image: name, Annotations: asked.GetAnnotations(), UserSpecifiedImage: asked.GetUserSpecifiedImage(),
		RuntimeHandler: asked.GetRuntimeHandler()}
}

// UpdateContainerResources implements RuntimeService.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if r.GetWindows() != nil {
		return nil, fmt.Errorf("update resources: windows: this is a Linux node: %w", pod.ErrInvalid)
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, s.c.Pods.UpdateResources(ctx, r.GetContainerId(), r.GetLinux())
}

// ReopenContainerLog implements RuntimeService.
func (s *Server) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return &runtimeapi.ReopenContainerLogResponse{}, s.c.Pods.ReopenLog(ctx, r.GetContainerId())
}

// ExecSync implements RuntimeService.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	timeout := time.Duration(min(max(r.GetTimeout(), 0), maxGrace)) * time.Second
	res, err := s.c.Pods.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	stdout, stderr := fit(res.Stdout, res.Stderr)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(res.ExitCode)}, nil
}

// Exec implements RuntimeService.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	url, err := s.c.Streams.Exec(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach implements RuntimeService.
func (s *Server) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	url, err := s.c.Streams.Attach(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// maxAnswer is what a gRPC client takes, 16 MiB, less room for the message around it.
const maxAnswer = 16<<20 - 64<<10

// fit cuts two outputs so that both go into one answer; neither is cut below half of it for the other's sake.
func fit(stdout, stderr []byte) ([]byte, []byte) {
	e := min(len(stderr), max(maxAnswer/2, maxAnswer-len(stdout)))
	return stdout[:min(len(stdout), maxAnswer-e)], stderr[:e]
}
