// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// criuConfigEnv tells CRIU of a configuration. What /etc/criu/runc.conf has comes after it, and wins.
const criuConfigEnv = "CRIU_CONFIG_FILE"

// criu are the arguments and the environment of the OCI runtime for CRIU, which a checkpoint and its restoration must have in common. Where the caller has put a
// configuration beside the images, cgroups are left out, too, for what is restored has another, with the limits of another spec; that needs runc 1.2.
func criu(folder string) (args, env []string) {
	args = []string{"--image-path", filepath.Join(folder, shimapi.CheckpointImages), "--work-path", folder, "--file-locks"}
	config := filepath.Join(folder, shimapi.CRIUConfig)
	if _, err := os.Stat(config); err != nil {
		return args, nil
	}
	return append(args, "--manage-cgroups-mode", "ignore"), []string{criuConfigEnv + "=" + config}
}

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
	args, env := criu(folder)
	args = append([]string{"checkpoint", "--leave-running"}, args...)
	call := &runtimeCall{options: t.options, args: append(args, t.id), env: env}
	if err := t.runtime.start(call); err != nil {
		return err
	}
	return call.wait()
}

// begin is the OCI runtime's command that makes a container run, all at once, and what it has in its environment.
func (t *task) begin() (command, env []string) {
	if t.checkpointed == "" {
		return []string{"run", "--detach"}, nil
	}
	args, env := criu(t.checkpointed)
	return append([]string{"restore", "--detach"}, args...), env
}
