// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-run/berth/internal/config"
	"github.com/berth-run/berth/internal/runtime"
)

// openHandler turns a [runtimes] table into a runtime handler. A foreign shim is driven by berth-shim, which looks like an OCI runtime from
// the outside: see internal/shim/foreign.
func openHandler(name string, r *config.Runtime, shim string, systemd bool) (runtime.Handler, error) {
	program := name
	if r.Type == "shim" && r.Shim != "" {
		var err error
		if program, err = config.ShimProgram(r.Shim); err != nil {
			return runtime.Handler{}, fmt.Errorf("[runtimes.%s] shim: %w", name, err)
		}
	}
	path, err := sibling(r.Path, program)
	if err != nil {
		return runtime.Handler{}, fmt.Errorf("[runtimes.%s] path: %w", name, err)
	}
	h := runtime.Handler{Name: name, Path: path, Args: slices.Clone(r.Options), Root: r.Root, SystemdCgroup: systemd}
	if strings.HasPrefix(filepath.Base(path), "runsc") && r.Type == "oci" {
		return runtime.Handler{}, fmt.Errorf("[runtimes.%s] type: runsc puts all containers of a pod into one process, which type \"oci\" cannot drive yet", name)
	}
	sandboxed := r.Type == "shim"
	h.Native = !sandboxed
	h.SandboxContainer = r.SandboxContainer == "always" || sandboxed && r.SandboxContainer == "auto"
	if r.Type != "shim" {
		return h, nil
	}
	h.Path, h.Foreign, h.Args = shim, true, []string{"task", "--shim", path}
	for _, option := range [][2]string{{"--config", r.ShimConfig}, {"--binary", r.ShimBinary}} {
		if option[1] != "" {
			h.Args = append(h.Args, option[0], option[1])
		}
	}
	return h, nil
}
