// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/shimapi"
)

// maxSpec bounds a bundle's config.json.
const maxSpec = 16 << 20

// taskSpec is what the shim needs to know of config.json.
type taskSpec struct {
	terminal    bool
	cgroupsPath string
}

func readSpec(bundle string) (taskSpec, error) {
	name := filepath.Join(bundle, shimapi.ConfigName)
	info, err := os.Stat(name)
	if err != nil {
		return taskSpec{}, fmt.Errorf("read spec: %w", err)
	}
	if info.Size() > maxSpec {
		return taskSpec{}, fmt.Errorf("read spec: %s has %d bytes, more than %d", name, info.Size(), maxSpec)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return taskSpec{}, fmt.Errorf("read spec: %w", err)
	}
	var spec taskSpec
	terminal, err := jsonField(data, "process", "terminal")
	if err == nil {
		spec.terminal = string(terminal) == "true"
		spec.cgroupsPath, err = jsonString(data, "linux", "cgroupsPath")
	}
	if err != nil {
		return taskSpec{}, fmt.Errorf("read spec %s: %w", name, err)
	}
	return spec, nil
}
