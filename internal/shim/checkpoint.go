// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"path/filepath"

	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// Checkpoint has the OCI runtime, by CRIU, write the state of a container's processes into the folder of the request. The container goes on as it was:
// running, or paused. There is no limit of time: who ends CRIU half-way leaves its code in the processes.
func (s *service) Checkpoint(_ context.Context, req *wire.CheckpointTaskRequest) (*wire.Empty, error) {
	t, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(req.Path) {
		return nil, rpc.Errorf(rpc.InvalidArgument, "checkpoint container %s: path %q is not absolute", t.id, req.Path)
	}
	if !t.options.Native {
		return nil, rpc.Errorf(rpc.Unimplemented, "checkpoint container %s: its processes are none of this kernel's", t.id)
	}
	return empty, t.checkpoint(req.Path)
}

func (t *task) checkpoint(folder string) error {
	if err := t.require(running, "checkpoint"); err != nil {
		return err
	}
	if !t.checkpointing.CompareAndSwap(false, true) {
		return rpc.Errorf(rpc.FailedPrecondition, "checkpoint container %s: another checkpoint of it is being made", t.id)
	}
	defer t.checkpointing.Store(false)
	call := &runtimeCall{options: t.options, args: []string{
		"checkpoint", "--image-path", filepath.Join(folder, shimapi.CheckpointImages), "--work-path", folder, "--leave-running", "--file-locks", t.id,
	}}
	if err := t.runtime.start(call); err != nil {
		return err
	}
	return call.wait()
}
