// SPDX-License-Identifier: Apache-2.0

// Package cgroup makes, empties and removes the cgroups that pods live in, in whatever hierarchies the host
// has mounted: one for each controller (v1), the unified one (v2), or v1 beside a unified one without
// controllers (hybrid). Limits and statistics of containers are not its business: the OCI runtime sets the former.
// Packages above floor 0 use it; it changes nothing but the path that it is given, except that the ancestors
// of a new cgroup are made and (v1 cpuset, v2 subtree_control) prepared as the kernel demands.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/kernfile"
	"github.com/berth-run/berth/internal/linux/proc"
)

// Mode is how the host's cgroup hierarchies are laid out.
type Mode int

// The layouts that a host can have.
const (
	// Legacy: v1 controllers only.
	Legacy Mode = iota + 1
	// Hybrid: the controllers are on v1, beside a v2 hierarchy that has none of them.
	Hybrid
	// Unified: one v2 hierarchy.
	Unified
)

func (m Mode) String() string {
	switch m {
	case Legacy:
		return "v1"
	case Hybrid:
		return "hybrid"
	case Unified:
		return "v2"
	}
	return "none"
}

// ErrNoCgroups means that no cgroup hierarchy with controllers is mounted.
var ErrNoCgroups = errors.New("no cgroup hierarchy with controllers is mounted")

// ErrProtected is returned for a path that must not be killed or removed: the root.
var ErrProtected = errors.New("not a cgroup of its own")

// v1Controllers are the names under which /proc/self/mountinfo lists a v1 hierarchy's controllers among
// its super block options.
var v1Controllers = []string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc",
	"net_cls", "net_prio", "perf_event", "pids", "rdma"}

// Hierarchies are the mounted cgroup hierarchies of the host. The zero value is not usable; it is safe for
// concurrent use, being immutable.
type Hierarchies struct {
	mode Mode
	// points are the distinct mount points of the v1 hierarchies (named ones too), or the unified one's.
	points []string
	// unified is the mount point of the v2 hierarchy: in Unified and Hybrid mode.
	unified string
	// controllers maps a v1 controller to its mount point.
	controllers map[string]string
}

// Detect finds the hierarchies in /proc/self/mountinfo.
func Detect() (*Hierarchies, error) {
	mounts, err := proc.CgroupMounts()
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	return FromMounts(mounts)
}

// FromMounts sorts out a map from v1 controller, "name=…" or "" (v2) to mount point; other keys are mount options. ErrNoCgroups.
func FromMounts(mounts map[string]string) (*Hierarchies, error) {
	h := &Hierarchies{controllers: make(map[string]string), unified: mounts[""]}
	points := make(map[string]bool)
	for key, point := range mounts {
		switch {
		case slices.Contains(v1Controllers, key):
			h.controllers[key] = point
			points[point] = true
		case strings.HasPrefix(key, "name="):
			points[point] = true
		}
	}
	switch {
	case len(h.controllers) > 0 && h.unified != "":
		h.mode = Hybrid
	case len(h.controllers) > 0:
		h.mode = Legacy
	case h.unified != "":
		h.mode = Unified
		points = map[string]bool{h.unified: true} // a stray named v1 hierarchy is of no use to anybody
	default:
		return nil, ErrNoCgroups
	}
	h.points = slices.Sorted(maps.Keys(points))
	return h, nil
}

// Mode tells the layout.
func (h *Hierarchies) Mode() Mode { return h.mode }

// Folder is where a controller's files of a cgroup are; "" as the controller means the v2 hierarchy. False: it is not mounted.
func (h *Hierarchies) Folder(controller, path string) (string, bool) {
	point, ok := h.unified, h.unified != ""
	if h.mode != Unified && controller != "" {
		point, ok = h.controllers[controller]
	}
	return filepath.Join(point, path), ok
}

// Controllers lists the controllers that cgroups can have, sorted.
func (h *Hierarchies) Controllers() ([]string, error) {
	if h.mode != Unified {
		return slices.Sorted(maps.Keys(h.controllers)), nil
	}
	controllers, err := readWords(filepath.Join(h.unified, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("list cgroup controllers: %w", err)
	}
	slices.Sort(controllers)
	return controllers, nil
}

// all are the mount points that a pod's processes or folders may be found under: with the unified one of the
// hybrid layout, which OCI runtimes may use though it has no controllers.
func (h *Hierarchies) all() []string {
	if h.mode == Hybrid {
		return append(slices.Clone(h.points), h.unified)
	}
	return h.points
}

// Exists tells whether the path is a cgroup in any hierarchy.
func (h *Hierarchies) Exists(path string) (bool, error) {
	for _, point := range h.all() {
		switch _, err := os.Lstat(filepath.Join(point, path)); {
		case err == nil:
			return true, nil
		case !errors.Is(err, fs.ErrNotExist):
			return false, fmt.Errorf("look for cgroup %s: %w", path, err)
		}
	}
	return false, nil
}

// List returns the names of the path's child cgroups in any hierarchy, sorted; none if there is no such path.
func (h *Hierarchies) List(path string) ([]string, error) {
	names := make(map[string]bool)
	for _, point := range h.all() {
		children, err := childDirs(filepath.Join(point, path))
		if err != nil {
			return nil, fmt.Errorf("list cgroup %s: %w", path, err)
		}
		for _, child := range children {
			names[child] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// Pids returns the processes in the path and all cgroups below it, sorted; none if there is no such path. A
// process of a PID namespace that cannot be seen from here is listed by the kernel as 0 and left out.
func (h *Hierarchies) Pids(path string) ([]int, error) {
	found := make(map[int]bool)
	for _, point := range h.all() {
		err := walk(filepath.Join(point, path), func(dir string) error {
			pids, err := readPids(dir)
			for _, pid := range pids {
				found[pid] = true
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
		}
	}
	delete(found, 0)
	return slices.Sorted(maps.Keys(found)), nil
}

// Processes is Pids by one hierarchy only: enough for statistics, where a process is in the same cgroup of each.
func (h *Hierarchies) Processes(path string) ([]int, error) {
	controller := ""
	if h.mode != Unified {
		controller = "pids"
	}
	dir, ok := h.Folder(controller, path)
	if !ok {
		return nil, fmt.Errorf("list processes of cgroup %s: no controller %q", path, controller)
	}
	var found []int
	err := walk(dir, func(dir string) error {
		pids, err := readPids(dir)
		found = append(found, pids...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
	}
	return slices.DeleteFunc(found, func(pid int) bool { return pid == 0 }), nil
}

// OOMKills returns how many of the cgroup's processes the kernel has killed for want of memory; on v2 those
// of the cgroups below it are counted too. fs.ErrNotExist: no such cgroup, or no memory controller.
func (h *Hierarchies) OOMKills(path string) (uint64, error) {
	name := filepath.Join(h.unified, path, "memory.events")
	if h.mode != Unified {
		point, ok := h.controllers["memory"]
		if !ok {
			return 0, fmt.Errorf("count OOM kills of cgroup %s: no memory controller: %w", path, fs.ErrNotExist)
		}
		name = filepath.Join(point, path, "memory.oom_control")
	}
	words, err := readWords(name)
	if err != nil {
		return 0, fmt.Errorf("count OOM kills of cgroup %s: %w", path, err)
	}
	for i := 0; i+1 < len(words); i += 2 {
		if words[i] != "oom_kill" {
			continue
		}
		count, err := strconv.ParseUint(words[i+1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("count OOM kills of cgroup %s: %w", path, err)
		}
		return count, nil
	}
	return 0, fmt.Errorf("count OOM kills of cgroup %s: the kernel does not tell: %w", path, fs.ErrNotExist)
}

// gone tells that a cgroup was removed, before or while a file of it was open.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

// walk visits dir and the folders below it, parents first. What is removed meanwhile is passed over.
func walk(dir string, visit func(dir string) error) error {
	if err := visit(dir); gone(err) {
		return nil
	} else if err != nil {
		return err
	}
	children, err := childDirs(dir)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := walk(filepath.Join(dir, child), visit); err != nil {
			return err
		}
	}
	return nil
}

// childDirs returns the names of the folders in dir; none if dir is gone.
func childDirs(dir string) ([]string, error) {
	// A folder has two links, and one from each folder in it: to list all files of a cgroup takes ten times as long as to look at that.
	if info, err := os.Lstat(dir); err == nil && info.Sys().(*syscall.Stat_t).Nlink == 2 {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// readPids reads cgroup.procs; a threaded v2 cgroup refuses that and has only cgroup.threads.
func readPids(dir string) ([]int, error) {
	words, err := readWords(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, syscall.EOPNOTSUPP) {
		words, err = readWords(filepath.Join(dir, "cgroup.threads"))
	}
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(words))
	for _, word := range words {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("read pids in %s: %w", dir, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func readWords(name string) ([]string, error) {
	fd, err := kernfile.Open(name, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 512)
	for {
		data = slices.Grow(data, 512)
		n, err := unix.Read(fd, data[len(data):cap(data)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		case n == 0:
			return strings.Fields(string(data)), nil
		default:
			data = data[:len(data)+n]
		}
	}
}
