// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/checkpoint"
	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/spec"
)

// checkpointWorkers bounds how many containers of a pod CRIU looks at side by side.
const checkpointWorkers = 4

// CheckpointPodRequest asks for a checkpoint of a pod (KEP-5823).
type CheckpointPodRequest struct {
	SandboxID string
	// Folder is where the checkpoint is to be: an absolute path of a folder that is there and empty, and stays when it fails.
	Folder string
	// Containers are the IDs of those that are to be in it, all of which run.
	Containers []string
}

// CheckpointPod writes the state of a pod's containers into a folder, from which RestorePod makes another pod. All of them stand still while they are written,
// so that all is of one instant, and go on before it returns, whatever comes of it: when ctx ends, too, it still waits for what CRIU is at, which must not be
// ended half-way. Established TCP connections are not in a checkpoint. Errors: ErrNotFound, ErrState, ErrInvalid, runtime.ErrUnsupported.
func (m *Manager) CheckpointPod(ctx context.Context, r CheckpointPodRequest) error {
	s, err := m.SandboxByID(r.SandboxID)
	if err != nil {
		return err
	}
	if !s.Status().Ready {
		return fmt.Errorf("%s: checkpoint: is not ready: %w", s, ErrState)
	}
	cs, err := s.selected(r.Containers)
	if err != nil {
		return fmt.Errorf("%s: checkpoint: %w", s, err)
	}
	if err := m.canCheckpoint(s.Handler, s.Config); err != nil {
		return fmt.Errorf("%s: checkpoint: %w", s, err)
	}
	if err := emptyFolder(r.Folder); err != nil {
		return fmt.Errorf("%s: checkpoint: %w", s, err)
	}
	folder := filepath.Clean(r.Folder)
	kind := "CheckpointPod to " + folder
	// Nobody may be told before all go on.
	return s.checkpoints.doToEnd(ctx, kind, func(ctx context.Context) error {
		err := withAll(ctx, cs, kind, func(ctx context.Context) error { return s.checkpoint(ctx, cs, folder) })
		if err != nil {
			return fmt.Errorf("%s: checkpoint: %w", s, err)
		}
		return nil
	})
}

// selected finds the containers of a checkpoint, in the order of their IDs.
func (s *Sandbox) selected(ids []string) (cs []*Container, err error) {
	for _, id := range ids {
		c, _, err := s.m.running(id)
		if err != nil {
			return nil, err
		}
		if c.sandbox != s {
			return nil, fmt.Errorf("%s is of %s: %w", c, c.sandbox, ErrInvalid)
		}
		if slices.Contains(cs, c) {
			return nil, fmt.Errorf("%s is named twice: %w", c, ErrInvalid)
		}
		cs = append(cs, c)
	}
	if len(cs) == 0 {
		return nil, fmt.Errorf("names no container: %w", ErrInvalid)
	}
	slices.SortFunc(cs, func(a, b *Container) int { return strings.Compare(a.ID, b.ID) })
	return cs, nil
}

// canCheckpoint tells why a pod's processes cannot be written down and restored.
func (m *Manager) canCheckpoint(handler string, config *runtimeapi.PodSandboxConfig) error {
	if err := m.parts.Runtime.CanCheckpoint(handler); err != nil {
		return err
	}
	switch {
	case spec.UserNamespaceOf(config) != nil:
		return fmt.Errorf("the pod has a user namespace of its own, and CRIU restores no process into one that is there: %w", ErrUnsupported)
	case namespaces(config).GetPid() != runtimeapi.NamespaceMode_CONTAINER:
		return fmt.Errorf("the pod's containers have no PID namespaces of their own, so that their process IDs may be taken where they are restored: %w", ErrUnsupported)
	case m.parts.Labels != nil:
		return fmt.Errorf("this node has SELinux, which gives each pod labels of its own, and CRIU restores those of the old one: %w", ErrUnsupported)
	}
	return nil
}

func emptyFolder(path string) error {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return fmt.Errorf("output path %q is not absolute: %w", path, ErrInvalid)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("output path: %w: %w", ErrInvalid, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("output path %s is not empty: %w", path, ErrInvalid)
	}
	return nil
}

// withAll keeps other checkpoints of the containers, which are in the order of their IDs, out meanwhile.
func withAll(ctx context.Context, cs []*Container, kind string, f func(context.Context) error) error {
	if len(cs) == 0 {
		return f(ctx)
	}
	return cs[0].checkpoints.doToEnd(ctx, kind, func(ctx context.Context) error { return withAll(ctx, cs[1:], kind, f) })
}

func (s *Sandbox) checkpoint(ctx context.Context, cs []*Container, folder string) (err error) {
	shim := s.theShim()
	if shim == nil {
		return fmt.Errorf("the pod's shim is gone: %w", ErrUnavailable)
	}
	key, err := s.m.checkpointKey()
	if err != nil {
		return err
	}
	manifest := checkpoint.Pod{Made: time.Now().UTC(), Handler: s.Handler, Config: s.facts().Config, SharedMemory: s.paths.pins.IPC != ""}
	for _, c := range cs {
		r := c.facts()
		manifest.Containers = append(manifest.Containers, checkpoint.Container{Name: c.Config.GetMetadata().GetName(), Config: r.Config, ImageID: r.ImageID})
	}
	// A daemon that ends half-way leaves containers that stand still, and part of a checkpoint: the next one must know of both.
	if err := s.update(func(r *sandboxRecord) { r.Checkpoint = folder }); err != nil {
		return err
	}
	if err = s.capture(ctx, shim, cs, folder); err == nil {
		err = manifest.Seal(ctx, folder, key)
	}
	if err == nil {
		err = context.Cause(ctx) // nobody would hear of it
	}
	if err != nil {
		err = errors.Join(err, checkpoint.DiscardPod(folder))
	}
	if errors.Is(err, errFrozen) {
		return err // the record stays as it is
	}
	s.learn(func(r *sandboxRecord) { r.Checkpoint = "" }) // the disk may be full by now
	return err
}

// capture writes what must be of one instant.
func (s *Sandbox) capture(ctx context.Context, shim Shim, cs []*Container, folder string) error {
	err := each(cs, checkpointWorkers, func(_ int, c *Container) error { return shim.Pause(ctx, c.ID) })
	if err == nil {
		err = each(cs, checkpointWorkers, func(n int, c *Container) error {
			return c.captureInto(ctx, shim, filepath.Join(folder, checkpoint.PartsOf(n)))
		})
	}
	if err == nil && s.paths.pins.IPC != "" {
		err = writeNew(filepath.Join(folder, checkpoint.SharedMemory), func(f *os.File) error { return image.WriteFolder(ctx, s.paths.shm, s.owner(), f) })
	}
	return errors.Join(err, each(cs, checkpointWorkers, func(_ int, c *Container) error { return c.thaw(context.WithoutCancel(ctx), shim) }))
}

func (c *Container) captureInto(ctx context.Context, shim Shim, parts string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := os.Mkdir(parts, 0o700); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	// Not with ctx: CRIU goes on whatever becomes of the call, and the container must not before it is done.
	if err := shim.Checkpoint(context.WithoutCancel(ctx), c.ID, parts, true); err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	if err := c.diffRootfs(ctx, filepath.Join(parts, checkpoint.RootfsDiff)); err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

// endCheckpoint cleans up after a checkpoint that an earlier life has not finished.
func (s *Sandbox) endCheckpoint(ctx context.Context, alive bool, cs []*Container) {
	folder := s.facts().Checkpoint
	if folder == "" {
		return
	}
	s.log.InfoContext(ctx, "a checkpoint was cut off", "folder", folder)
	var err error
	if shim := s.theShim(); alive && shim != nil {
		err = each(cs, checkpointWorkers, func(_ int, c *Container) error { return c.thaw(ctx, shim) })
	}
	if err = errors.Join(err, checkpoint.DiscardPod(folder)); err == nil {
		err = s.update(func(r *sandboxRecord) { r.Checkpoint = "" })
	}
	if err != nil {
		s.log.WarnContext(ctx, "what a checkpoint that was cut off has left", "error", err)
	}
}
