// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/berth-run/berth/internal/shim/wire"
)

// optionsName is the file, in a bundle, of the CreateOptions: what is left when the shim is killed is deleted with them.
const optionsName = "berth-options"

func writeOptions(bundle string, options *wire.CreateOptions) error {
	if err := os.WriteFile(filepath.Join(bundle, optionsName), wire.Marshal(options), 0o600); err != nil {
		return fmt.Errorf("keep options: %w", err)
	}
	return nil
}

// runtimeRoot is where containerd's own shim for OCI runtimes has their state, so that people find it.
const runtimeRoot = "/run/containerd/runc"

// RuncOptions turns what containerd tells a shim for OCI runtimes into ours; createArgs are further arguments of the runtime's create.
func RuncOptions(any wire.Any, namespace string) (options *wire.CreateOptions, createArgs []string, err error) {
	var told wire.RuncOptions
	switch strings.TrimPrefix(any.TypeURL, "types.containerd.io/") {
	case "":
	case "containerd.runc.v1.Options":
		if err := wire.Unmarshal(any.Value, &told); err != nil {
			return nil, nil, err
		}
	case "runtimeoptions.v1.Options":
		var general wire.RuntimeOptions
		if err := wire.Unmarshal(any.Value, &general); err != nil {
			return nil, nil, err
		}
		if general.ConfigPath != "" || len(general.ConfigBody) > 0 {
			return nil, nil, errors.New(`this shim takes containerd.runc.v1.Options: configure it in containerd with runtime_type = "io.containerd.runc.v2" and its path as runtime_path`)
		}
	default:
		return nil, nil, fmt.Errorf("type %q is not known, only containerd.runc.v1.Options is", any.TypeURL)
	}
	if told.Root == "" {
		told.Root = runtimeRoot
	}
	options = &wire.CreateOptions{RuntimeRoot: filepath.Join(told.Root, namespace), SystemdCgroup: told.SystemdCgroup, IOUID: told.IOUID, IOGID: told.IOGID}
	if options.Runtime, err = findRuntime(told.BinaryName); err != nil {
		return nil, nil, err
	}
	options.Native = !strings.HasPrefix(filepath.Base(options.Runtime), "runsc")
	if told.NoPivotRoot {
		createArgs = append(createArgs, "--no-pivot")
	}
	if told.NoNewKeyring {
		createArgs = append(createArgs, "--no-new-keyring")
	}
	return options, createArgs, nil
}

// findRuntime finds an OCI runtime as a shell would; runc, which is the default, first beside this program, where Berth installs it.
func findRuntime(name string) (string, error) {
	folders := filepath.SplitList(os.Getenv("PATH"))
	if name == "" {
		name = "runc"
		if self, err := os.Executable(); err == nil {
			folders = append([]string{filepath.Dir(self)}, folders...)
		}
	}
	if strings.ContainsRune(name, '/') {
		if !filepath.IsAbs(name) {
			return "", fmt.Errorf("OCI runtime %q is neither a name nor an absolute path", name)
		}
		return name, nil
	}
	for _, folder := range folders {
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && syscall.Access(path, 1) == nil { // X_OK
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("OCI runtime %q is not in PATH (%s)", name, os.Getenv("PATH"))
}
