// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/cri"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/runtime"
)

// abilities are what a runtime handler and this kernel can do together.
type abilities struct {
	recursiveReadOnly, mappedMounts bool
	// withoutUserNamespaces says why pods can have none; nil: they can.
	withoutUserNamespaces error
}

// can asks the handler's OCI runtime, which answers from memory but for the first time.
func (d *daemon) can(handler string) abilities {
	f, err := d.runtime.Features(context.Background(), handler)
	if err != nil && !errors.Is(err, runtime.ErrUnsupported) {
		d.log.Warn("features of runtime", "handler", handler, "error", err)
	}
	a := abilities{recursiveReadOnly: f.RecursiveReadOnlyMounts && mount.CanSetRecursively(), mappedMounts: f.IDMapMounts,
		withoutUserNamespaces: d.withoutUserNamespaces()}
	if !f.UserNamespaces {
		a.withoutUserNamespaces = fmt.Errorf("the OCI runtime of handler %q enters no user namespaces, or has no mapped mounts", handler)
	}
	return a
}

// withoutUserNamespaces says what of this machine keeps pods from having them. The OCI runtime is the pod's own root already when it goes to the
// root file system, so the way there must be open, at least to pass through.
func (d *daemon) withoutUserNamespaces() error {
	if err := d.images.MappedLayers(); err != nil {
		return err
	}
	for dir := d.cfg.State; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("folder %s of the state folder %s is closed to others (%s); chmod o+x", dir, d.cfg.State, info.Mode().Perm())
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// handlers tells the runtime handlers with their features, the default one first and under the name "" as the kubelet wants it.
func (d *daemon) handlers(context.Context) []cri.Handler {
	var all []cri.Handler
	for _, h := range d.runtime.Handlers() {
		can := d.can(h.Name)
		out := cri.Handler{Name: h.Name, RecursiveReadOnly: can.recursiveReadOnly, UserNamespaces: can.withoutUserNamespaces == nil}
		if h.Name == d.cfg.DefaultRuntime {
			standard := out
			standard.Name = ""
			all = append(all, standard)
		}
		all = append(all, out)
	}
	return all
}
