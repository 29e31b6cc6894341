// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os/exec"
	"slices"

	"github.com/berth-run/berth/internal/config"
	"github.com/berth-run/berth/internal/runtime"
)

// checkRuntimes runs each handler's program with --version and `features`.
func (d *Doctor) checkRuntimes(ctx context.Context, r report) {
	shim, err := find(config.Program(d.Config.Shim.Path, "berth-shim"))
	if err != nil {
		r.fail("install it beside berth, or set [shim] path", "berth-shim: %v", err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(d.Config.Runtimes)) {
		handler := d.Config.Runtimes[name]
		path, err := find(handler.Find(name))
		if err != nil {
			r.fail("install it, or set [runtimes."+name+"] path", "runtime handler %s: %v", name, err)
			continue
		}
		if handler.Type == "shim" { // what it does without a pod is not the same for any two of them
			r.ok("runtime handler %s: the shim %s is there", name, path)
			continue
		}
		one, err := runtime.New(runtime.Config{ShimPath: shim, StateDir: d.Config.State,
			Handlers: map[string]runtime.Handler{name: {Name: name, Path: path}}, Default: name}, slog.New(slog.DiscardHandler))
		if err != nil {
			r.fail("install it, or set [runtimes."+name+"] path", "runtime handler %s: %v", name, err)
			continue
		}
		d.askRuntime(ctx, r, one, name)
		one.Close()
	}
	if d.Config.Runtimes[d.Config.DefaultRuntime] == nil {
		r.fail("add [runtimes."+d.Config.DefaultRuntime+"] or change default_runtime", "default_runtime %s is no handler", d.Config.DefaultRuntime)
	}
}

// find is a program's whole path, if there is one that can be run.
func find(path string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return exec.LookPath(path)
}

func (d *Doctor) askRuntime(ctx context.Context, r report, one *runtime.Runtime, name string) {
	v, err := one.Version(ctx, name)
	if err != nil {
		r.fail("see that the program is complete and made for this machine", "runtime handler %s does not run: %v", name, err)
		return
	}
	f, err := one.Features(ctx, name)
	switch {
	case errors.Is(err, runtime.ErrUnsupported):
		r.ok("runtime handler %s: %s %s, which does not tell its features", name, v.Name, v.Version)
	case err != nil:
		r.warn("see that the program is complete", "runtime handler %s does not tell its features: %v", name, err)
	default:
		r.ok("runtime handler %s: %s %s (recursive read-only mounts %v, user namespaces %v)", name, v.Name, v.Version, f.RecursiveReadOnlyMounts, f.UserNamespaces)
	}
}
