// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/checkpoint"
	"github.com/berth-run/berth/internal/runtime"
)

// thawTries is how often a container is let go on that does not.
const thawTries = 3

// CheckpointRequest asks for a checkpoint of a container.
type CheckpointRequest struct {
	ID string
	// Location is where the archive is to be, an absolute path in a folder that is there. What is there is replaced.
	Location string
	// Status is the container's CRI ContainerStatus as JSON, for the archive.
	Status []byte
}

func (m *Manager) checkpointsDir() string { return filepath.Join(m.cfg.Root, "checkpoints") }

// restoresDir has what containers are restored from, a folder for each.
func (m *Manager) restoresDir() string         { return filepath.Join(m.cfg.Root, "restores") }
func (m *Manager) restoreDir(id string) string { return filepath.Join(m.restoresDir(), id) }

// checkpointKey is the node's, with which it knows its own checkpoints of pods.
func (m *Manager) checkpointKey() (checkpoint.Key, error) {
	return checkpoint.LoadKey(filepath.Join(m.cfg.Root, "checkpoint.key"))
}

// Checkpoint writes the state of a running container's processes and what it has changed in its root file system into an archive. The container stands still
// meanwhile, so that both are of one instant, and then goes on. A stop does not wait for it. Errors: ErrNotFound, ErrState, ErrInvalid, ErrInFlight,
// runtime.ErrUnsupported.
func (m *Manager) Checkpoint(ctx context.Context, r CheckpointRequest) error {
	c, _, err := m.running(r.ID)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(r.Location) || strings.HasSuffix(r.Location, "/") || strings.ContainsRune(r.Location, 0) {
		return fmt.Errorf("%s: checkpoint: location %q is not the absolute path of a file: %w", c, r.Location, ErrInvalid)
	}
	r.Location = filepath.Clean(r.Location)
	if info, err := os.Stat(filepath.Dir(r.Location)); err != nil || !info.IsDir() {
		return fmt.Errorf("%s: checkpoint: there is no folder %s: %w", c, filepath.Dir(r.Location), ErrInvalid)
	}
	if info, err := os.Lstat(r.Location); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s: checkpoint: %s is there and no regular file: %w", c, r.Location, ErrInvalid)
	}
	return c.checkpoints.do(ctx, "CheckpointContainer to "+r.Location, func(ctx context.Context) error {
		if err := c.checkpoint(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		return nil
	})
}

func (c *Container) checkpoint(ctx context.Context, r CheckpointRequest) (err error) {
	shim := c.sandbox.theShim()
	if shim == nil {
		return fmt.Errorf("checkpoint: the pod's shim is gone: %w", ErrUnavailable)
	}
	content := checkpoint.Content{
		Folder: filepath.Join(c.m.checkpointsDir(), c.ID+"-"+rand.Text()), ID: c.ID, Name: c.Config.GetMetadata().GetName(), Image: c.Config.GetImage().GetImage(),
		ImageRef: c.Status().ImageRef, Runtime: cmp.Or(c.sandbox.Handler, c.m.cfg.DefaultHandler), Created: time.Unix(0, c.Status().CreatedAt), CheckpointedAt: time.Now(), Status: r.Status, Log: c.paths.log,
	}
	if content.Spec, err = os.ReadFile(c.paths.spec); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := os.MkdirAll(content.Folder, 0o700); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(content.Folder)) }()
	part := filepath.Join(filepath.Dir(r.Location), "."+filepath.Base(r.Location)+"."+c.ID+".part")
	// A daemon that ends half-way leaves a container that stands still, and part of an archive: the next one must know of both.
	if err := c.update(func(rec *containerRecord) { rec.Checkpoint = part }); err != nil {
		return err
	}
	if err = c.capture(ctx, shim, content.Folder); err == nil {
		err = content.Save(ctx, part, r.Location)
	}
	if errors.Is(err, errFrozen) {
		return err // the record stays as it is
	}
	c.learn(func(rec *containerRecord) { rec.Checkpoint = "" }) // the disk may be full by now
	if c.isRemoved() {
		err = errors.Join(err, fmt.Errorf("checkpoint: %w", errGone))
	}
	return err
}

// errFrozen: a container that was to go on stands still.
var errFrozen = errors.New("the container stands still")

// capture writes what must be of one instant.
func (c *Container) capture(ctx context.Context, shim Shim, folder string) error {
	if err := shim.Pause(ctx, c.ID); err != nil {
		if errors.Is(err, runtime.ErrBroken) { // it may have come to it
			err = errors.Join(err, c.thaw(ctx, shim))
		}
		return err
	}
	err := shim.Checkpoint(ctx, c.ID, folder, false)
	if err == nil {
		err = c.diffRootfs(ctx, filepath.Join(folder, checkpoint.RootfsDiff))
	}
	return errors.Join(err, c.thaw(ctx, shim))
}

func (c *Container) diffRootfs(ctx context.Context, to string) error {
	return writeNew(to, func(f *os.File) error { return c.m.parts.Images.DiffRootfs(ctx, c.ID, c.sandbox.owner(), f) })
}

// writeNew makes a file of a checkpoint.
func writeNew(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return errors.Join(fill(f), f.Close())
}

// thaw lets the container go on. One that has ended meanwhile needs nothing.
func (c *Container) thaw(ctx context.Context, shim Shim) (err error) {
	for range thawTries {
		err = shim.Resume(ctx, c.ID)
		if err == nil || errors.Is(err, runtime.ErrNotFound) || errors.Is(err, runtime.ErrState) || errors.Is(err, runtime.ErrShimGone) {
			return nil
		}
	}
	c.log.ErrorContext(ctx, "a container was paused for a checkpoint and does not go on", "error", err)
	return fmt.Errorf("%w: %w", errFrozen, err)
}

// endCheckpoint cleans up after a checkpoint that an earlier life has not finished.
func (c *Container) endCheckpoint(ctx context.Context, alive bool) {
	part := c.facts().Checkpoint
	if part == "" {
		return
	}
	c.log.InfoContext(ctx, "a checkpoint was cut off", "part", part)
	var err error
	if shim := c.sandbox.theShim(); alive && shim != nil {
		err = c.thaw(ctx, shim)
	}
	if err = errors.Join(err, checkpoint.Discard(part)); err == nil {
		err = c.update(func(rec *containerRecord) { rec.Checkpoint = "" })
	}
	if err != nil {
		c.log.WarnContext(ctx, "what a checkpoint that was cut off has left", "error", err)
	}
}
