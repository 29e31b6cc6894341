// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
)

var eventTypes = map[pod.EventType]runtimeapi.ContainerEventType{
	pod.EventCreated: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, pod.EventStarted: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	pod.EventStopped: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, pod.EventDeleted: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// GetContainerEvents implements RuntimeService. A new subscriber is told of all that there is first; so is one that was too slow, of what it
// missed, so that a kubelet with evented PLEG needs no new stream.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, to grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ctx := to.Context()
	events, err := s.c.Pods.Subscribe()
	if err != nil {
		return err
	}
	defer events.Close()
	var lost uint64
	for {
		e, err := events.Next(ctx)
		if err != nil {
			return err
		}
		if now := events.Lost(); now > lost {
			s.c.Log.WarnContext(ctx, "a subscriber to events is too slow and is told what is true now instead of each event", "lost", now-lost)
			lost = now
		}
		err = to.Send(&runtimeapi.ContainerEventResponse{ContainerId: e.ID, ContainerEventType: eventTypes[e.Type], CreatedAt: e.At,
			PodSandboxStatus: sandboxStatus(e.Sandbox), ContainersStatuses: s.containerStatuses(e.Containers)})
		if err != nil {
			return err
		}
	}
}

func (s *Server) containerStatuses(all []*pod.ContainerStatus) (out []*runtimeapi.ContainerStatus) {
	for _, c := range all {
		out = append(out, s.containerStatus(c))
	}
	return out
}
