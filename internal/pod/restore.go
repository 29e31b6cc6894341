// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/checkpoint"
	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/runtime"
)

// RestorePodRequest asks for a pod from a checkpoint (KEP-5823).
type RestorePodRequest struct {
	// Folder is the checkpoint's.
	Folder string
	// Config and Handler are those of RunSandbox, Containers of CreateContainer: one for each in the checkpoint, by their names.
	Config     *runtimeapi.PodSandboxConfig
	Handler    string
	Containers []*runtimeapi.ContainerConfig
}

// RestoredPod is what RestorePod has made; Containers are the IDs in the order of the request.
type RestoredPod struct {
	SandboxID  string
	Containers []string
}

// source is where a container is restored from: the n-th of a checkpoint.
type source struct {
	*checkpoint.Pod
	n int
}

// RestorePod makes a sandbox with containers, all CREATED, of which StartContainer then restores the processes. All that is to be run and allowed comes from the
// request; the checkpoint, which must be this node's own and unchanged, has only the state of what ran. Where it fails nothing is left, and it does not return
// before. A repeated call returns the same pod while none of its containers is started. Errors: ErrInvalid, ErrState (the request does not go with the
// checkpoint), ErrExists, ErrUnavailable, image.ErrNotFound, runtime.ErrUnsupported.
func (m *Manager) RestorePod(ctx context.Context, r RestorePodRequest) (RestoredPod, error) {
	r.Handler, r.Folder = cmp.Or(r.Handler, m.cfg.DefaultHandler), filepath.Clean(r.Folder)
	from, err := m.checkRestore(r)
	if err != nil {
		return RestoredPod{}, err
	}
	for {
		s, err := m.reserveSandbox(r.Config, r.Handler)
		if err != nil {
			return RestoredPod{}, err
		}
		// Who is not told of a pod must not have one.
		err = s.ops.doToEnd(ctx, "RestorePod from "+r.Folder, func(ctx context.Context) error { return s.restore(ctx, from, r) })
		if errors.Is(err, errGone) {
			continue // it was removed since: begin anew
		}
		if err != nil {
			return RestoredPod{}, err
		}
		return s.asRestored(r)
	}
}

// checkRestore finds what is wrong with a request before anything is done.
func (m *Manager) checkRestore(r RestorePodRequest) (*checkpoint.Pod, error) {
	if err := m.CheckHandler(r.Handler); err != nil {
		return nil, err
	}
	if err := m.parts.Specs.ValidateSandbox(r.Config, r.Handler); err != nil {
		return nil, err
	}
	for _, c := range r.Containers {
		if err := m.parts.Specs.ValidateContainer(c, r.Config); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.GetMetadata().GetName(), err)
		}
	}
	if !filepath.IsAbs(r.Folder) {
		return nil, fmt.Errorf("restore: checkpoint path %q is not absolute: %w", r.Folder, ErrInvalid)
	}
	if err := m.canCheckpoint(r.Handler, r.Config); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	key, err := m.checkpointKey()
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	from, err := checkpoint.OpenPod(r.Folder, key)
	switch {
	case errors.Is(err, checkpoint.ErrNone):
		return nil, fmt.Errorf("restore: %w: %w", ErrInvalid, err)
	case err != nil:
		return nil, fmt.Errorf("restore: %w: %w", ErrState, err)
	}
	if err := fits(from, r); err != nil {
		return nil, fmt.Errorf("restore from %s: %w", r.Folder, err)
	}
	return from, nil
}

// restore takes the sandbox from its name to READY, with its containers.
func (s *Sandbox) restore(ctx context.Context, from *checkpoint.Pod, r RestorePodRequest) error {
	if was := s.facts(); was.ReadyAt != 0 && was.RemovedAt == 0 {
		if was.StoppedAt != 0 || was.RestoredFrom != r.Folder || !proto.Equal(s.Config, r.Config) || s.Handler != r.Handler {
			return fmt.Errorf("%s: a sandbox of this name and attempt exists; remove it first: %w", s, ErrExists)
		}
		return nil
	}
	return s.runWith(ctx, func(ctx context.Context) error {
		if err := s.update(func(rec *sandboxRecord) { rec.RestoredFrom = r.Folder }); err != nil {
			return err
		}
		if err := s.takeShm(ctx, from); err != nil {
			return err
		}
		for _, config := range r.Containers {
			n, err := numberOf(from, config.GetMetadata().GetName())
			if err != nil {
				return err
			}
			c, err := s.reserveContainer(config, &source{from, n})
			if err == nil {
				err = c.ops.doToEnd(ctx, "RestorePod", c.create)
			}
			if err != nil {
				return err
			}
			c.source = nil
		}
		return context.Cause(ctx) // nobody would hear of it
	})
}

// takeShm fills the pod's /dev/shm.
func (s *Sandbox) takeShm(ctx context.Context, from *checkpoint.Pod) error {
	if !from.SharedMemory || s.paths.pins.IPC == "" {
		return nil
	}
	f, err := from.Open(ctx, checkpoint.SharedMemory)
	if err != nil {
		return fmt.Errorf("restore /dev/shm: %w: %w", ErrState, err)
	}
	defer f.Close()
	return restoring("/dev/shm", image.ReadFolder(ctx, s.paths.shm, s.owner(), f))
}

// asRestored is the pod that RestorePod has made.
func (s *Sandbox) asRestored(r RestorePodRequest) (RestoredPod, error) {
	out := RestoredPod{SandboxID: s.ID}
	for _, config := range r.Containers {
		s.m.mu.RLock()
		c := s.m.containers[s.m.names[containerName(s.ID, config)]]
		s.m.mu.RUnlock()
		if c == nil || !proto.Equal(c.Config, config) || c.Status().State != runtimeapi.ContainerState_CONTAINER_CREATED {
			return RestoredPod{}, fmt.Errorf("%s: it was restored before, and its container %s is not as it was made; remove the sandbox first: %w", s, config.GetMetadata().GetName(), ErrExists)
		}
		out.Containers = append(out.Containers, c.ID)
	}
	return out, nil
}

// sameImage tells whether a container that is restored gets the image that it ran on.
func (c *Container) sameImage(im image.Image) error {
	if c.source == nil {
		return nil
	}
	if want := c.source.Containers[c.source.n].ImageID; im.ID != want {
		return fmt.Errorf("%s: image %q is %s, and the container in the checkpoint ran on %s: %w", c, c.Config.GetImage().GetImage(), im.ID, want, ErrState)
	}
	return nil
}

// takeChanges puts what the container had changed into its root file system, which is not mounted yet.
func (c *Container) takeChanges(ctx context.Context) error {
	if c.source == nil {
		return nil
	}
	f, err := c.source.Open(ctx, filepath.Join(checkpoint.PartsOf(c.source.n), checkpoint.RootfsDiff))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	defer f.Close()
	return restoring("the root file system", c.m.parts.Images.ApplyRootfs(ctx, c.ID, c.sandbox.owner(), f))
}

// takeImages copies what CRIU restores: until then, the checkpoint may be changed or be gone.
func (c *Container) takeImages(ctx context.Context) error {
	if c.source == nil {
		return fmt.Errorf("what it is restored from is not known any more: %w", ErrState)
	}
	return restoring("processes", c.source.CopyImages(ctx, c.source.n, c.paths.images))
}

func restoring(what string, err error) error {
	if errors.Is(err, checkpoint.ErrForeign) {
		err = fmt.Errorf("%w: %w", ErrState, err)
	}
	if err != nil {
		return fmt.Errorf("restore %s: %w", what, err)
	}
	return nil
}

func (c *Container) dropImages(context.Context) error { return os.RemoveAll(c.paths.images) }

// restored frees what a container was restored from, which may be as large as its memory. What cannot be removed goes with the container.
func (c *Container) restored(ctx context.Context) {
	if !c.facts().Restore {
		return
	}
	if err := c.dropImages(ctx); err != nil {
		c.log.WarnContext(ctx, "what the container was restored from stays until it is removed", "error", err)
	}
}

// restoreTask restores the container's processes with what begins its task. One container of a pod at a time: the first one brings the System V IPC objects
// along that they share.
func (c *Container) restoreTask(ctx context.Context, begin func(context.Context) error) error {
	return c.sandbox.checkpoints.do(ctx, "restoration of "+c.ID, func(ctx context.Context) error {
		if c.sandbox.hasIPC() {
			if err := checkpoint.ForgetIPC(c.paths.images); err != nil {
				return err
			}
		}
		if err := begin(ctx); err != nil {
			return runtime.WhyNotRestored(err, c.paths.images)
		}
		c.sandbox.broughtIPC.Store(true)
		if c.sandbox.paths.pins == (NamespacePins{}) {
			return nil
		}
		return c.m.parts.Host.ResetNamespaces(c.sandbox.namespaceRequest())
	})
}

// hasIPC tells whether a container was restored that has brought along the pod's IPC objects, in this life or an earlier one.
func (s *Sandbox) hasIPC() bool {
	return s.broughtIPC.Load() || slices.ContainsFunc(s.containers(), func(c *Container) bool { r := c.facts(); return r.Restore && r.StartedAt != 0 })
}
