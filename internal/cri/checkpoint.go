// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
)

// CheckpointContainer implements RuntimeService. A timeout of 0 leaves it to the caller's deadline. When that is over, what has begun goes on: CRIU
// must not be ended half-way.
func (s *Server) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if r.GetTimeout() < 0 {
		return nil, fmt.Errorf("checkpoint: timeout %d is negative: %w", r.GetTimeout(), pod.ErrInvalid)
	}
	c, err := s.c.Pods.ContainerByID(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	// The form that other runtimes and checkpointctl read: the message's Go fields, not protobuf's own JSON.
	status, err := json.Marshal(s.containerStatus(c.Status()))
	if err != nil {
		return nil, fmt.Errorf("checkpoint: encode status: %w", err)
	}
	if r.GetTimeout() > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(min(r.GetTimeout(), maxGrace))*time.Second)
		defer cancel()
	}
	return &runtimeapi.CheckpointContainerResponse{}, s.c.Pods.Checkpoint(ctx, pod.CheckpointRequest{ID: c.ID, Location: r.GetLocation(), Status: status})
}
