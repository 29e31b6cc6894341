// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
)

// shims lets a runtime.Runtime serve as pod.Runtime, whose methods return interfaces.
type shims struct{ *runtime.Runtime }

func (s shims) StartShim(ctx context.Context, sandbox string) (pod.Shim, error) {
	shim, err := s.Runtime.StartShim(ctx, runtime.ShimRequest{Sandbox: sandbox})
	if err != nil {
		return nil, err // a nil *runtime.Shim in an interface would not be nil
	}
	return shim, nil
}

func (s shims) ConnectShim(ctx context.Context, sandbox string) (pod.Shim, error) {
	shim, err := s.Runtime.ConnectShim(ctx, sandbox)
	if err != nil {
		return nil, err
	}
	return shim, nil
}

func (s shims) HasHandler(name string) bool {
	_, err := s.Handler(name)
	return err == nil
}

func (s shims) SandboxContainer(name string) bool {
	h, err := s.Handler(name)
	return err == nil && h.SandboxContainer
}

func (s shims) Handlers() []string {
	var names []string
	for _, h := range s.Runtime.Handlers() {
		names = append(names, h.Name)
	}
	return names
}
