// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/pidfd"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// leftOverLimit bounds KillLeftOver.
	leftOverLimit = 30 * time.Second
	// maxConfig bounds what is read of a bundle's config.json.
	maxConfig = 16 << 20
)

// LeftOver is what is known of a container whose shim is gone.
type LeftOver struct {
	// PID is its init's process ID, 0 if no init was started.
	PID int
	// Alive tells that the init still runs.
	Alive bool
}

// LeftOver tells what a shim that is gone has left of a container.
func (r *Runtime) LeftOver(sandbox, id string) (LeftOver, error) {
	fact, err := shimapi.ReadInitFact(shimapi.BundlePath(r.podDir(sandbox), id))
	if errors.Is(err, fs.ErrNotExist) {
		return LeftOver{}, nil
	}
	if err != nil {
		return LeftOver{}, fmt.Errorf("left-over of container %s: %w", id, err)
	}
	return LeftOver{PID: fact.PID, Alive: proc.Is(fact.PID, fact.StartTime)}, nil
}

// KillLeftOver ends a container whose shim is gone, with all its processes, and makes the OCI runtime forget it. It
// is idempotent, and needs nothing to be there: a start that was cut off anywhere is cleared up, too.
func (r *Runtime) KillLeftOver(ctx context.Context, handler, id, bundle string) error {
	ctx, cancel := context.WithTimeout(ctx, leftOverLimit)
	defer cancel()
	if err := r.killLeftOver(ctx, handler, id, bundle); err != nil {
		return fmt.Errorf("end what is left of container %s: %w", id, err)
	}
	return nil
}

func (r *Runtime) killLeftOver(ctx context.Context, handler, id, bundle string) error {
	if err := validID(id); err != nil {
		return err
	}
	h, err := r.Handler(handler)
	if err != nil {
		return err
	}
	// The order matters: whoever may still be making the container goes first, and the OCI runtime, which knows
	// things of its own, comes last.
	problems := []error{r.killLaunchers(ctx, h, id), killInit(ctx, bundle)}
	group, err := containerCgroup(bundle, id)
	if err == nil && group != "" {
		err = r.cgroups.Kill(ctx, group)
	}
	problems = append(problems, err)
	args := append(slices.Clone(h.Args), "--root", h.Root)
	if h.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	_, err = runTool(ctx, h.Path, append(args, "delete", "--force", id)...)
	if err != nil && h.Native && errors.Join(problems...) == nil {
		// A runtime that is broken or gone must not keep the pod: what makes a native runtime's container is gone but for its folder.
		r.log.Error("the OCI runtime does not delete a container; it is taken away without it", "container", id, "error", err)
		err = os.RemoveAll(filepath.Join(h.Root, id))
	}
	problems = append(problems, err)
	if err == nil && group != "" && !h.SystemdCgroup {
		// A start that was cut off before the OCI runtime saved its state leaves cgroups that it knows nothing of.
		problems = append(problems, r.cgroups.Remove(ctx, group))
	}
	return errors.Join(problems...)
}

// killInit kills the init on record, if it still is that process.
func killInit(ctx context.Context, bundle string) error {
	fact, err := shimapi.ReadInitFact(bundle)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return pidfd.KillAll(ctx, proc.ID{PID: fact.PID, StartTime: fact.StartTime})
}

// killLaunchers ends the OCI runtime's processes that work on the container. The dead shim was their parent, so
// nobody else does. The OCI runtime's folder is in their command line: another Berth's container may have the same ID.
func (r *Runtime) killLaunchers(ctx context.Context, h Handler, id string) error {
	found, err := proc.Find(func(args []string) bool {
		return (args[0] == h.Path || args[0] == filepath.Base(h.Path)) && slices.Contains(args[1:], id) && slices.Contains(args[1:], h.Root)
	})
	if err != nil {
		return err
	}
	return pidfd.KillAll(ctx, found...)
}

// containerCgroup returns the container's own cgroup, from its OCI spec; "" if the bundle has none. One that is not
// named for the container is not its own, and nothing that is to be killed.
func containerCgroup(bundle, id string) (string, error) {
	file, err := os.Open(filepath.Join(bundle, shimapi.ConfigName))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	var config struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if err := json.NewDecoder(io.LimitReader(file, maxConfig)).Decode(&config); err != nil {
		return "", fmt.Errorf("decode %s: %w", file.Name(), err)
	}
	if config.Linux.CgroupsPath == "" {
		return "", nil
	}
	group, err := cgroup.ResolveOCI(config.Linux.CgroupsPath)
	if err != nil {
		return "", err
	}
	if !strings.Contains(path.Base(group), id) {
		return "", fmt.Errorf("cgroup %s is not container %s's own: %w", group, id, cgroup.ErrProtected)
	}
	return group, nil
}
