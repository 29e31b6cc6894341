// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
)

// CheckpointPod implements RuntimeService (KEP-5823).
func (s *Server) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	if err := checkCheckpoint(ctx, "checkpoint pod", r.GetOptions()); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointPodResponse{}, s.c.Pods.CheckpointPod(ctx, pod.CheckpointPodRequest{SandboxID: r.GetPodSandboxId(), Folder: r.GetOutputPath(), Containers: r.GetContainerIds()})
}

// RestorePod implements RuntimeService (KEP-5823).
func (s *Server) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	if err := checkCheckpoint(ctx, "restore pod", r.GetOptions()); err != nil {
		return nil, err
	}
	if r.GetConfig() == nil {
		return nil, fmt.Errorf("restore pod: no sandbox config: %w", pod.ErrInvalid)
	}
	restored, err := s.c.Pods.RestorePod(ctx, pod.RestorePodRequest{Folder: r.GetCheckpointPath(), Config: r.GetConfig(), Handler: r.GetRuntimeHandler(), Containers: r.GetContainerConfigs()})
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.RestorePodResponse{PodSandboxId: restored.SandboxID}
	for i, id := range restored.Containers {
		out.RestoredContainers = append(out.RestoredContainers, &runtimeapi.RestoredContainer{Name: r.GetContainerConfigs()[i].GetMetadata().GetName(), ContainerId: id})
	}
	return out, nil
}

// checkCheckpoint holds what the CRI demands of both calls: a deadline, and no option that the runtime does not know, as Berth knows none.
func checkCheckpoint(ctx context.Context, operation string, options map[string]string) error {
	if _, ok := ctx.Deadline(); !ok {
		return fmt.Errorf("%s: the call has no deadline, and must have one: %w", operation, pod.ErrInvalid)
	}
	if len(options) > 0 {
		return fmt.Errorf("%s: unknown options %q; there are none: %w", operation, slices.Sorted(maps.Keys(options)), pod.ErrInvalid)
	}
	return nil
}
