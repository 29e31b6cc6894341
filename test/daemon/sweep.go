// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/test/leak"
)

// claim is the file in a daemon's folder that names the process that is to take it away.
const claim = "claim.json"

// remains are what a daemon and its pods may leave when nobody takes them away.
type remains struct {
	// Owner is the process that has the daemon, in the PID namespace Namespace.
	Owner     proc.ID
	Namespace string
	Scope     leak.Scope
	// Bundles is the folder of containerd's shims; empty: there are none.
	Bundles string
}

func (d *Daemon) remains() remains {
	r := remains{Scope: d.Scope()}
	if r.Scope.Daemon = 0; d.Spec.Kind == Containerd {
		r.Bundles = d.State + "/io.containerd.runtime.v2.task/k8s.io"
	}
	return r
}

// sweep takes all of it away by force.
func (r remains) sweep() error {
	sockets := r.shimSockets()
	errs := []error{r.Scope.Sweep()}
	for _, s := range sockets {
		if err := os.Remove(s); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// shimSockets are those of containerd's shims, which lie in one folder for all the containerds of a machine.
func (r remains) shimSockets() (paths []string) {
	if r.Bundles == "" {
		return nil
	}
	files, _ := filepath.Glob(r.Bundles + "/*/bootstrap.json")
	for _, f := range files {
		var at struct{ Address string }
		if data, err := os.ReadFile(f); err != nil || json.Unmarshal(data, &at) != nil {
			continue
		}
		if path, ok := strings.CutPrefix(at.Address, "unix://"); ok && filepath.IsAbs(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// Claim notes that this process will close the daemon, for SweepCut to find when it was killed before.
func (d *Daemon) Claim() error {
	r := d.remains()
	id, ok := proc.Identify(os.Getpid())
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil || !ok {
		return fmt.Errorf("claim a daemon: %w", err)
	}
	r.Owner, r.Namespace = id, namespace
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("claim a daemon: %w", err)
	}
	return os.WriteFile(filepath.Join(d.Dir, claim), data, 0o600)
}

// SweepCut takes away what daemons have left that were claimed by processes which have ended without closing them, and returns their folders.
func SweepCut() (swept []string, err error) {
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("sweep what was cut off: %w", err)
	}
	files, err := filepath.Glob("/tmp/bt-*/" + claim)
	errs := []error{err}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue // just closed
		}
		var r remains
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep what was cut off: %s: %w", f, err))
			continue
		}
		if r.Namespace == namespace && r.Scope.Dir == filepath.Dir(f) && !r.Owner.Runs() {
			errs = append(errs, r.sweep())
			swept = append(swept, r.Scope.Dir)
		}
	}
	return swept, errors.Join(errs...)
}
