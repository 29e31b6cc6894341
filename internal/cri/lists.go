// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds of one message of a streamed list (KEP-5825): far below gRPC's default of 4 MiB, and few enough items that the first comes soon.
const (
	chunkItems = 1024
	chunkBytes = 1 << 20
)

// send hands out the items in lists of at least one, each item once; the end of the stream, which the return of the RPC is, ends the list.
// A single item that is larger than chunkBytes goes alone.
func send[T proto.Message](items []T, message func([]T) error) error {
	begin, size := 0, 0
	for i, item := range items {
		n := proto.Size(item)
		if i > begin && (size+n > chunkBytes || i-begin >= chunkItems) {
			if err := message(items[begin:i]); err != nil {
				return err
			}
			begin, size = i, 0
		}
		size += n
	}
	if begin < len(items) {
		return message(items[begin:])
	}
	return nil
}

// StreamPodSandboxes implements RuntimeService.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return send(s.listSandboxes(r.GetFilter()), func(some []*runtimeapi.PodSandbox) error {
		return to.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: some})
	})
}

// StreamContainers implements RuntimeService.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, to grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return send(s.listContainers(r.GetFilter()), func(some []*runtimeapi.Container) error {
		return to.Send(&runtimeapi.StreamContainersResponse{Containers: some})
	})
}

// StreamContainerStats implements RuntimeService.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	return send(s.listContainerStats(to.Context(), r.GetFilter()), func(some []*runtimeapi.ContainerStats) error {
		return to.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: some})
	})
}

// StreamPodSandboxStats implements RuntimeService.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	return send(s.listSandboxStats(to.Context(), r.GetFilter()), func(some []*runtimeapi.PodSandboxStats) error {
		return to.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: some})
	})
}

// StreamPodSandboxMetrics implements RuntimeService.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return send(s.listMetrics(to.Context()), func(some []*runtimeapi.PodSandboxMetrics) error {
		return to.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: some})
	})
}

// StreamImages implements ImageService.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, to grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	return send(s.listImages(r.GetFilter()), func(some []*runtimeapi.Image) error {
		return to.Send(&runtimeapi.StreamImagesResponse{Images: some})
	})
}
