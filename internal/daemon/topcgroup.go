// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

// topCgroup is [cgroup] parent under cgroupfs, in which the pods live that name no other. A daemon that ends in an ordinary way takes it away where
// nothing lives in it any more and a daemon since the last boot made it: one that somebody else made may have limits.
type topCgroup struct {
	cgroups *cgroup.Hierarchies
	path    string
	// mark is a file that says that it is ours. It lies in the state folder, which ends with a boot as cgroups do.
	mark   string
	marked atomic.Bool
}

// create makes a cgroup and notes whether the top one came with it.
func (t *topCgroup) create(path string) error {
	fresh := false
	if !t.marked.Load() {
		exists, err := t.cgroups.Exists(t.path)
		if err != nil {
			return err
		}
		fresh = !exists
	}
	if _, err := t.cgroups.Create(path); err != nil || !fresh {
		return err
	}
	if exists, err := t.cgroups.Exists(t.path); err != nil || !exists { // it is not above what was made
		return err
	}
	if err := os.WriteFile(t.mark, nil, 0o600); err != nil {
		return fmt.Errorf("note that cgroup %s is Berth's: %w", t.path, err)
	}
	t.marked.Store(true)
	return nil
}

// drop removes it if it is ours and empty. No create may overlap it.
func (t *topCgroup) drop() error {
	if _, err := os.Lstat(t.mark); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	left, err := t.cgroups.RemoveEmpty(t.path)
	if err != nil || left {
		return err
	}
	return os.Remove(t.mark)
}
