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

	"github.com/berth-run/berth/internal/shimapi/task"
)

const (
	criuName = "criu"
	// dumpLogName is what CRIU calls its log, maxDumpLog how much of its end is looked through, maxDumpErrors how many of its errors are told.
	dumpLogName   = "dump.log"
	maxDumpLog    = 256 << 10
	maxDumpErrors = 3
)

// Checkpoint has CRIU write the state of a container's processes into a folder; see shim.Checkpoint. The container goes on, or stays paused. Errors:
// ErrUnsupported, for want of CRIU or of processes that it could see; ErrState, ErrNotFound.
func (s *Shim) Checkpoint(ctx context.Context, id, folder string) error {
	if err := findCRIU(); err != nil {
		return translate("checkpoint", id, err)
	}
	err := s.taskCall(ctx, once, "checkpoint", id, func(c task.TaskService) error {
		_, err := c.Checkpoint(ctx, &task.CheckpointTaskRequest{Id: id, Path: folder})
		return err
	})
	if err == nil {
		return nil
	}
	if said := dumpErrors(filepath.Join(folder, dumpLogName)); said != "" {
		return fmt.Errorf("%w; CRIU says: %s", err, said)
	}
	return err
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

// dumpErrors are the last errors in CRIU's log, but for the very last, which says that it has failed. The first ones mostly tell what it can do without.
func dumpErrors(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxDumpLog {
		_, _ = f.Seek(-maxDumpLog, io.SeekEnd) // of a regular file
	}
	var said []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		_, text, ok := strings.Cut(lines.Text(), "Error (")
		if !ok || strings.HasSuffix(text, "Dumping FAILED.") {
			continue
		}
		if said = append(said, "Error ("+strings.TrimSpace(text)); len(said) > maxDumpErrors {
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
