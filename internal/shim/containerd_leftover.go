// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// DeleteLeftOver takes away the container that a killed shim has left in the bundle: its processes, cgroups, the runtime's state, the mounted
// root file system. The answer is how it ended: as the shim has written down, else by SIGKILL, now. It is idempotent.
func DeleteLeftOver(id, bundle string) (*wire.DeleteResponse, error) {
	answer := &wire.DeleteResponse{ExitStatus: 128 + uint32(syscall.SIGKILL)}
	data, err := os.ReadFile(filepath.Join(bundle, optionsName))
	switch {
	case errors.Is(err, os.ErrNotExist): // the shim had not come to it: nothing was made
	case err != nil:
		return nil, err
	default:
		if err := deleteLeftOver(id, bundle, data); err != nil {
			return nil, err
		}
	}
	if err := unmountRootfs(bundle); err != nil {
		return nil, err
	}
	answer.ExitedAt = time.Now()
	if init, err := shimapi.ReadInitFact(bundle); err == nil {
		answer.PID = uint32(init.PID)
	}
	if exit, err := shimapi.ReadExitFact(bundle); err == nil {
		answer.PID, answer.ExitStatus, answer.ExitedAt = uint32(exit.PID), exit.ExitCode, exit.ExitedAt
	}
	return answer, nil
}

func deleteLeftOver(id, bundle string, data []byte) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := newService("", log)
	if err != nil {
		return err
	}
	defer s.runtime.null.Close()
	t := &task{id: id, bundle: bundle, options: &wire.CreateOptions{}, slog: log, runtime: s.runtime, oom: &s.oom, init: newProcess()}
	if err := wire.Unmarshal(data, t.options); err != nil {
		return err
	}
	if t.spec, err = readSpec(bundle); err != nil {
		return err
	}
	return t.deleteContainer()
}

// RuntimeEnvironment names the variables that the OCI runtime sees of a shim's environment.
func RuntimeEnvironment() []string { return runtimeEnv }
