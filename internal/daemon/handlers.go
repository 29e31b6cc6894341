// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-run/berth/internal/config"
	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/runtime"
)

// openHandler turns a [runtimes] table into a runtime handler. A foreign shim is driven by berth-shim, which looks like an OCI runtime from
// the outside, and so is runsc, which has no process on the host for each container: see internal/shim/foreign.
func openHandler(name string, r *config.Runtime, shim, driver string) (runtime.Handler, error) {
	systemd, err := r.SystemdCgroup(driver)
	if err != nil {
		return runtime.Handler{}, fmt.Errorf("[runtimes.%s] %w", name, err)
	}
	path, err := r.Find(name)
	if err != nil {
		return runtime.Handler{}, fmt.Errorf("[runtimes.%s] path: %w", name, err)
	}
	h := runtime.Handler{Name: name, Path: path, Args: slices.Clone(r.Options), Root: r.Root, SystemdCgroup: systemd}
	h.EntersNoUserNamespace = strings.Contains(filepath.Base(path), "runsc") // its program cannot: setns(2) refuses processes of several threads
	runsc := r.Type == "oci" && strings.HasPrefix(filepath.Base(path), "runsc")
	sandboxed := r.Type == "shim" || runsc
	h.Native = !sandboxed
	h.SandboxContainer = r.SandboxContainer == "always" || sandboxed && r.SandboxContainer == "auto"
	if runsc {
		h.Path, h.Foreign, h.Sandboxed, h.Program, h.Args = shim, true, true, path, []string{"task", "--oci", path}
		for _, option := range r.Options {
			h.Args = append(h.Args, "--oci-option", option)
		}
	}
	if r.Type != "shim" {
		return h, nil
	}
	h.Path, h.Foreign, h.Program, h.Args = shim, true, path, []string{"task", "--shim", path}
	for _, option := range [][2]string{{"--config", r.ShimConfig}, {"--binary", r.ShimBinary}} {
		if option[1] != "" {
			h.Args = append(h.Args, option[0], option[1])
		}
	}
	return h, nil
}

// cgroupfsHandlers are those whose runtimes make cgroups themselves, whoever makes the pods'.
func (d *daemon) cgroupfsHandlers() (names []string) {
	for name, r := range d.cfg.Runtimes {
		if r.CgroupDriver == cgroup.Cgroupfs {
			names = append(names, name)
		}
	}
	return names
}
