// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/telemetry"
)

const (
	// kubeletAPIVersion is the version that a kubelet wants to see in VersionResponse.version.
	kubeletAPIVersion = "0.1.0"
	runtimeName       = "berth"
	runtimeAPIVersion = "v1"
)

// Version implements RuntimeService.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: kubeletAPIVersion, RuntimeName: runtimeName, RuntimeVersion: s.c.Version, RuntimeApiVersion: runtimeAPIVersion}, nil
}

// Status implements RuntimeService.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.c.NetworkReady(); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	out := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, network}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if s.c.Conditions != nil {
		for _, c := range s.c.Conditions() {
			out.Status.Conditions = append(out.Status.Conditions,
				&runtimeapi.RuntimeCondition{Type: c.Type, Status: c.Reason == "", Reason: c.Reason, Message: c.Message})
		}
	}
	for _, h := range s.c.Handlers(ctx) {
		// Where there are user namespaces at all, the host's network is no obstacle to them here.
		out.Features.UserNamespacesHostNetwork = out.Features.UserNamespacesHostNetwork || h.UserNamespaces
		out.RuntimeHandlers = append(out.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: h.Name,
			Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.UserNamespaces}})
	}
	if !r.GetVerbose() {
		return out, nil
	}
	config, err := json.Marshal(s.c.Effective())
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	operations, err := json.Marshal(inFlight(s.c.InFlight()))
	if err != nil {
		return nil, fmt.Errorf("encode operations: %w", err)
	}
	work, err := json.Marshal(underWay(s.c.Pods.Operations()))
	if err != nil {
		return nil, fmt.Errorf("encode work: %w", err)
	}
	out.Info = map[string]string{"config": string(config), "operations": string(operations), "work": string(work)}
	return out, nil
}

// operation is a request in flight, or the work on a pod that goes on when the caller of one has left, for people and for `berth doctor`.
type operation struct {
	Method  string  `json:"method"`
	Object  string  `json:"object,omitempty"`
	Seconds float64 `json:"seconds"`
	// Stage tells the steps under way; of work only.
	Stage string `json:"stage,omitempty"`
}

// inFlight tells what the daemon is doing, the oldest first, without what only waits for news.
func inFlight(calls []telemetry.Call) []operation {
	all := []operation{}
	for _, c := range calls {
		if c.Method != "Status" && c.Method != "GetContainerEvents" {
			all = append(all, operation{Method: c.Method, Object: c.Object.String(), Seconds: time.Since(c.Since).Seconds()})
		}
	}
	return all
}

// underWay tells the work on pods, the oldest first.
func underWay(work []pod.Operation) []operation {
	all := []operation{}
	for _, w := range work {
		all = append(all, operation{w.Kind, w.Object, time.Since(w.Since).Seconds(), w.Stage})
	}
	return all
}

// RuntimeConfig implements RuntimeService. A zero cgroup driver would mean systemd to the kubelet, so it is always said.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.c.CgroupDriver == "systemd" {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig implements RuntimeService. Its one field, the node's pod CIDR, is for runtimes that write a CNI configuration
// themselves; here the CNI configuration is the operator's or the network plugin's.
func (s *Server) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		s.c.Log.DebugContext(ctx, "pod CIDR is left to the CNI configuration", "cidr", cidr)
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// verbose renders details as the one JSON value that crictl prints under "info".
func verbose(details map[string]any) (map[string]string, error) {
	for k, v := range details {
		if m, ok := v.(proto.Message); ok {
			raw, err := protojson.Marshal(m)
			if err != nil {
				return nil, fmt.Errorf("encode %s: %w", k, err)
			}
			details[k] = json.RawMessage(raw)
		}
	}
	raw, err := json.Marshal(details)
	if err != nil {
		return nil, fmt.Errorf("encode details: %w", err)
	}
	return map[string]string{"info": string(raw)}, nil
}
