// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/record"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/step"
)

// Names of a container's steps. The first two belong to CreateContainer and go with RemoveContainer; the
// task belongs to StartContainer and goes with the exit.
const (
	stepBundle = "bundle"
	stepRootfs = "rootfs"
	stepTask   = "task"
	// stepImages is of a container that is restored.
	stepImages = "checkpoint"
)

func (c *Container) newPlan() *step.Plan {
	steps := []step.Step{
		{Name: stepBundle, Acquire: c.makeBundle, Release: c.removeBundle},
		{Name: stepRootfs, After: []string{stepBundle}, Acquire: c.mountRootfs, Release: c.unmountRootfs},
		{Name: stepTask, After: []string{stepRootfs}, Acquire: c.startTask, Release: c.removeTask},
	}
	if c.rec.Restore {
		steps = append(steps, step.Step{Name: stepImages, Acquire: c.takeImages, Release: c.dropImages})
	}
	return &step.Plan{Object: c.String(), Journal: c, Timed: c.m.timed("container"), Passing: func() { record.Pass(c.paths.record) }, Steps: steps}
}

// toCreate are the steps of CreateContainer.
func (c *Container) toCreate() []string {
	if c.rec.Restore { // which nobody changes
		return []string{stepBundle, stepRootfs, stepImages}
	}
	return []string{stepBundle, stepRootfs}
}

func (c *Container) makeBundle(context.Context) error {
	if err := os.MkdirAll(c.paths.rootfs, 0o700); err != nil {
		return err
	}
	return c.sandbox.letIn(c.paths.bundle)
}

func (c *Container) removeBundle(context.Context) error { return mount.RemoveAll(c.paths.bundle) }

func (c *Container) mountRootfs(ctx context.Context) (err error) {
	r, owner := c.facts(), c.sandbox.owner()
	rootfs, err := c.m.parts.Images.PrepareRootfs(ctx, image.RootfsRequest{ID: c.ID, Handler: c.sandbox.Handler, ImageID: r.ImageID, VolumeIDs: r.volumeIDs(), Owner: owner})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rootfs.Close()) }()
	if err := c.takeChanges(ctx); err != nil {
		return err
	}
	rootfs.Root.Label = r.SELinux.Mount
	if err := c.m.parts.Host.MountOverlay(c.paths.rootfs, rootfs.Root); err != nil {
		return err
	}
	if err := c.mountVolumes(rootfs.Volumes); err != nil {
		return err
	}
	if err := c.m.parts.Images.FillVolumes(ctx, image.FillRequest{ID: c.ID, Root: c.paths.rootfs, Places: r.Volumes, Owner: owner}); err != nil {
		return err
	}
	for _, v := range c.anonymousVolumes() {
		if err := c.m.relabel(v.Source, r.SELinux.Mount); err != nil {
			return err
		}
	}
	return nil
}

func (c *Container) unmountRootfs(ctx context.Context) error {
	if err := c.unmountVolumes(); err != nil {
		return err
	}
	if err := c.m.parts.Host.Unmount(c.paths.rootfs); err != nil {
		return err
	}
	return c.m.parts.Images.RemoveRootfs(ctx, c.ID)
}

// startTask hands the bundle to the shim, which runs it with one exec of the OCI runtime.
func (c *Container) startTask(ctx context.Context) error {
	shim := c.sandbox.theShim()
	if shim == nil {
		return fmt.Errorf("the pod's shim is gone: %w", ErrState)
	}
	if err := c.pinTarget(); err != nil {
		return err
	}
	uid, gid := c.sandbox.root()
	var pid int
	task := runtime.CreateTask{ID: c.ID, Bundle: c.paths.bundle, Handler: c.sandbox.Handler, LogPath: c.paths.log, LogFolder: c.sandbox.Config.GetLogDirectory(),
		Stdin: c.Config.GetStdin(), StdinOnce: c.Config.GetStdinOnce(), IOUID: uint32(uid), IOGID: uint32(gid)}
	begin := func(ctx context.Context) error {
		// The shim opens the log, and starts nothing yet.
		_, err := unlessEnding(c, func(func(string)) (struct{}, error) { return struct{}{}, shim.Create(ctx, task) })
		if err != nil {
			return err
		}
		pid, err = shim.Start(ctx, c.ID)
		return err
	}
	var err error
	if c.facts().Restore {
		task.Checkpoint = c.paths.images
		err = c.restoreTask(ctx, begin)
	} else {
		err = begin(ctx)
	}
	if err = errors.Join(err, c.unpinTarget()); err != nil {
		return err
	}
	started := now()
	return c.update(func(r *containerRecord) {
		r.StartedAt, r.PID = started, c.m.parts.Runtime.TaskPID(c.sandbox.Handler, c.ID, pid)
	})
}

func (c *Container) removeTask(ctx context.Context) error {
	if err := c.sandbox.endTask(ctx, c.ID, c.paths.bundle); err != nil {
		return err
	}
	return c.unpinTarget()
}

// makeSpec makes config.json and notes what was resolved on the way.
func (c *Container) makeSpec(im image.Image) (ContainerSpec, error) {
	s := c.sandbox
	return c.makeSpecUnlessEnding(SpecRequest{Sandbox: s.Config, Container: c.configNow(), Image: im, SandboxID: s.ID, ContainerID: c.ID, Handler: s.Handler,
		CgroupsPath: s.cgroupsPath(c.ID), Paths: c.specPaths(),
		ImageMounts: c.imageMounts(), Volumes: c.anonymousVolumes(), Labels: c.facts().SELinux})
}

// saveSpec puts config.json into the bundle.
func (c *Container) saveSpec(config []byte) error {
	tmp := c.paths.spec + ".new"
	if err := os.WriteFile(tmp, config, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.paths.spec)
}

func (c *Container) specPaths() SpecPaths {
	p := c.sandbox.specPaths(c.paths.rootfs)
	if c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_TARGET {
		p.PIDNS = c.paths.targetPID
	}
	return p
}

// checkLog tells early that the folder of the log file, which is the kubelet's to make, is missing.
func (c *Container) checkLog() error {
	if c.paths.log == "" {
		return nil
	}
	dir := filepath.Dir(c.paths.log)
	info, err := unlessEnding(c, func(doing func(string)) (os.FileInfo, error) {
		doing("log folder " + dir)
		return os.Stat(dir)
	})
	if errors.Is(err, ErrState) {
		return err
	}
	if err == nil && !info.IsDir() {
		err = errors.New("not a folder")
	}
	if err != nil {
		return fmt.Errorf("log_path: folder %s: %w: %w", dir, ErrInvalid, err)
	}
	return nil
}
