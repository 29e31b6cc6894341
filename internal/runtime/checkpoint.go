// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/task"
)

const (
	criuName = "criu"
	// dumpLogName and restoreLogName are what the OCI runtime has CRIU call its log, maxCRIULog how much of its end is looked through, maxCRIUErrors how many
	// of its errors are told.
	dumpLogName    = "dump.log"
	restoreLogName = "restore.log"
	maxCRIULog     = 256 << 10
	maxCRIUErrors  = 3
	// closeTCP has established TCP connections left out of a checkpoint, and closed in what is restored of it: the peers go on with the container that runs
	// on, and what is restored has another address. CRIU wants both to say so, and other runtimes do not.
	closeTCP = "tcp-close\n"
)

// Checkpoint has CRIU write the state of a container's processes into a folder; see shim.Checkpoint. The container goes on, or stays paused. own tells that it is
// for CreateTask.Checkpoint, and not in the form that other runtimes restore. Errors: ErrUnsupported, for want of CRIU or of processes that it could see;
// ErrState, ErrNotFound.
func (s *Shim) Checkpoint(ctx context.Context, id, folder string, own bool) error {
	err := findCRIU()
	if err == nil && own {
		err = configureCRIU(folder)
	}
	if err != nil {
		return translate("checkpoint", id, err)
	}
	err = s.taskCall(ctx, once, "checkpoint", id, func(c task.TaskService) error {
		_, err := c.Checkpoint(ctx, &task.CheckpointTaskRequest{Id: id, Path: folder})
		return err
	})
	return withCRIU(err, filepath.Join(folder, dumpLogName))
}

// WhyNotRestored adds to the error of a Start what CRIU has said of it in the folder of the checkpoint.
func WhyNotRestored(err error, folder string) error {
	return withCRIU(err, filepath.Join(folder, restoreLogName))
}

func withCRIU(err error, log string) error {
	if err == nil {
		return nil
	}
	if said := criuErrors(log); said != "" {
		return fmt.Errorf("%w; CRIU says: %s", err, said)
	}
	return err
}

func configureCRIU(folder string) error {
	if err := os.WriteFile(filepath.Join(folder, shimapi.CRIUConfig), []byte(closeTCP), 0o600); err != nil {
		return fmt.Errorf("configure CRIU: %w", err)
	}
	return nil
}

// findCRIU looks where the OCI runtime will.
func findCRIU() error {
	for _, dir := range filepath.SplitList(shimPath) {
		_, err := exec.LookPath(filepath.Join(dir, criuName))
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) { // the second: not a program
			return fmt.Errorf("look for CRIU: %w", err)
		}
	}
	return fmt.Errorf("this node has no CRIU: install the package criu: %w", ErrUnsupported)
}

// criuErrors are the last errors in CRIU's log, but for the very last, which says that it has failed. The first ones mostly tell what it can do without.
func criuErrors(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxCRIULog {
		_, _ = f.Seek(-maxCRIULog, io.SeekEnd) // of a regular file
	}
	var said []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		_, text, ok := strings.Cut(lines.Text(), "Error (")
		if !ok || strings.HasSuffix(text, "FAILED.") {
			continue
		}
		if said = append(said, "Error ("+strings.TrimSpace(text)); len(said) > maxCRIUErrors {
			said = said[1:]
		}
	}
	return strings.Join(said, "; ")
}

// Pause freezes the processes of a container.
func (s *Shim) Pause(ctx context.Context, id string) error {
	return s.taskCall(ctx, once, "pause", id, func(c task.TaskService) error {
		_, err := c.Pause(ctx, &task.PauseRequest{Id: id})
		return err
	})
}

// Resume lets the processes of a paused container go on.
func (s *Shim) Resume(ctx context.Context, id string) error {
	return s.taskCall(ctx, repeat, "resume", id, func(c task.TaskService) error {
		_, err := c.Resume(ctx, &task.ResumeRequest{Id: id})
		return err
	})
}

// CanCheckpoint tells why containers of a handler cannot be checkpointed or restored: ErrUnsupported.
func (r *Runtime) CanCheckpoint(handler string) error {
	h, err := r.Handler(handler)
	if err != nil {
		return err
	}
	if !h.Native || h.Foreign {
		return fmt.Errorf("runtime handler %s: its processes are none that CRIU could see: %w", h.Name, ErrUnsupported)
	}
	return findCRIU()
}
