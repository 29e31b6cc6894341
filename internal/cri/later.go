// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What this release does not do yet says so, and what to use meanwhile: a client can fall back, nothing pretends.
const (
	laterMetrics    = "metrics come with a later release"
	laterCheckpoint = "checkpoint and restore come with a later release"
	laterLists      = "streamed lists come with a later release; the plain list calls work"
	laterEvents     = "container events come with a later release; polling the lists works"
)

func later(rpc, what string) error {
	return status.Errorf(codes.Unimplemented, "%s is not implemented: %s", rpc, what)
}

// ListMetricDescriptors implements RuntimeService.
func (*Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return nil, later("ListMetricDescriptors", laterMetrics)
}

// ListPodSandboxMetrics implements RuntimeService.
func (*Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return nil, later("ListPodSandboxMetrics", laterMetrics)
}

// CheckpointContainer implements RuntimeService.
func (*Server) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, later("CheckpointContainer", laterCheckpoint)
}

// CheckpointPod implements RuntimeService.
func (*Server) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, later("CheckpointPod", laterCheckpoint)
}

// RestorePod implements RuntimeService.
func (*Server) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, later("RestorePod", laterCheckpoint)
}

// StreamPodSandboxes implements RuntimeService.
func (*Server) StreamPodSandboxes(*runtimeapi.StreamPodSandboxesRequest, grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return later("StreamPodSandboxes", laterLists)
}

// StreamContainers implements RuntimeService.
func (*Server) StreamContainers(*runtimeapi.StreamContainersRequest, grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return later("StreamContainers", laterLists)
}

// StreamContainerStats implements RuntimeService.
func (*Server) StreamContainerStats(*runtimeapi.StreamContainerStatsRequest, grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	return later("StreamContainerStats", laterLists)
}

// StreamPodSandboxStats implements RuntimeService.
func (*Server) StreamPodSandboxStats(*runtimeapi.StreamPodSandboxStatsRequest, grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	return later("StreamPodSandboxStats", laterLists)
}

// StreamPodSandboxMetrics implements RuntimeService.
func (*Server) StreamPodSandboxMetrics(*runtimeapi.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return later("StreamPodSandboxMetrics", laterLists)
}

// StreamImages implements ImageService.
func (*Server) StreamImages(*runtimeapi.StreamImagesRequest, grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	return later("StreamImages", laterLists)
}

// GetContainerEvents implements RuntimeService.
func (*Server) GetContainerEvents(*runtimeapi.GetEventsRequest, grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	return later("GetContainerEvents", laterEvents)
}
