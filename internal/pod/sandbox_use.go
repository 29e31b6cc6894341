// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/nri"
)

// UpdateSandboxResources changes the resources of a ready pod as a whole and verifies them in the pod's cgroup. A nil message, and zero values,
// leave alone what they are about. A kubelet has set the same ones already (CRI: UpdatePodSandboxResources), so repeating them changes nothing.
// Errors: ErrNotFound, ErrState, ErrInvalid, ErrInFlight.
func (m *Manager) UpdateSandboxResources(ctx context.Context, id string, containers, overhead *runtimeapi.LinuxContainerResources) error {
	s, err := m.SandboxByID(id)
	if err != nil {
		return err
	}
	// Two different updates must not be joined into one, as two operations of the same kind would be.
	kind := "UpdatePodSandboxResources " + newID()[:8]
	return s.ops.do(ctx, kind, func(ctx context.Context) error { return s.updateResources(ctx, containers, overhead) })
}

func (s *Sandbox) updateResources(ctx context.Context, containers, overhead *runtimeapi.LinuxContainerResources) error {
	if !s.Status().Ready {
		return fmt.Errorf("%s: update resources: is not ready: %w", s, ErrState)
	}
	sum, err := s.m.parts.Specs.PodResources(containers, overhead)
	if err != nil {
		return fmt.Errorf("%s: update resources: %w", s, err)
	}
	if h := s.m.hooks(); h != nil {
		if err := h.UpdateSandbox(ctx, s.forHooks(), overhead, containers); err != nil {
			return fmt.Errorf("%s: update resources: %w", s, err)
		}
	}
	if err := s.m.parts.Host.SetPodLimits(ctx, s.facts().CgroupParent, sum); err != nil {
		return fmt.Errorf("%s: update resources: %w", s, err)
	}
	encoded := [2]json.RawMessage{}
	for i, r := range []*runtimeapi.LinuxContainerResources{containers, overhead} {
		if r == nil {
			continue
		}
		if encoded[i], err = protojson.Marshal(r); err != nil {
			return fmt.Errorf("%s: encode resources: %w", s, err)
		}
	}
	err = s.update(func(r *sandboxRecord) {
		if encoded[0] != nil {
			r.Resources = encoded[0]
		}
		if encoded[1] != nil {
			r.Overhead = encoded[1]
		}
	})
	if err != nil {
		return err
	}
	s.tell(ctx, nri.PostUpdateSandbox)
	s.log.InfoContext(ctx, "resources of the pod are updated", "resources", sum)
	return nil
}
