// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/berth-run/berth/internal/runtime"
)

// checkRuntimes runs each handler's program with --version and `features`.
func (d *Doctor) checkRuntimes(ctx context.Context, r report) {
	shim, err := exec.LookPath(shimPath(d.Config.Shim.Path))
	if err != nil {
		r.fail("install it beside berth, or set [shim] path", "berth-shim: %v", err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(d.Config.Runtimes)) {
		path := d.Config.Runtimes[name].Path
		if path == "" {
			path = besideUs(name)
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

// shimPath is berth-shim's, as the daemon finds it.
func shimPath(configured string) string {
	if configured != "" {
		return configured
	}
	return besideUs("berth-shim")
}

// besideUs is a program in our own folder, or else its bare name, which PATH then has to know.
func besideUs(name string) string {
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p
		}
	}
	return name
}
