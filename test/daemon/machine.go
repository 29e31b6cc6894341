// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/cgroup/slice"
)

// Slow is a limit on time, made longer by the factor BERTH_TEST_SLOW: an emulated processor needs ten times as long for everything.
func Slow(limit time.Duration) time.Duration {
	if factor, err := strconv.Atoi(os.Getenv("BERTH_TEST_SLOW")); err == nil && factor > 1 {
		return limit * time.Duration(factor)
	}
	return limit
}

// cgroupDriver is BERTH_TEST_CGROUP_DRIVER, else cgroupfs, which every machine has.
func cgroupDriver() string {
	if driver := os.Getenv("BERTH_TEST_CGROUP_DRIVER"); driver != "" {
		return driver
	}
	return cgroup.Cgroupfs
}

// cgroupTop is the cgroup below which all pods live. A dash in a slice's name would nest it.
func cgroupTop(driver, id string) string {
	if driver == cgroup.Systemd {
		return "berth_t_" + id + ".slice"
	}
	return "berth-t-" + id
}

// PodCgroup is the cgroup parent that a kubelet would send for a pod.
func (d *Daemon) PodCgroup(pod string) string {
	top := "/" + d.CgroupParent
	if d.CgroupDriver != cgroup.Systemd {
		return filepath.Join(top, pod)
	}
	return top + "/" + strings.TrimSuffix(d.CgroupParent, ".slice") + "-" + strings.ReplaceAll(pod, "-", "_") + ".slice"
}

// SharedCgroup is the cgroup parent of pods that do not care. Under systemd each has its own, since stopping a slice ends all that is in it.
func (d *Daemon) SharedCgroup(pod string) string {
	if d.CgroupDriver == cgroup.Systemd {
		return d.PodCgroup(pod)
	}
	return "/" + d.CgroupParent
}

// dropSlice has systemd forget the slice of all pods.
func (d *Daemon) dropSlice() error {
	if d.CgroupDriver != cgroup.Systemd {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), Slow(10*time.Second))
	defer cancel()
	m := slice.New()
	defer m.Close()
	return m.Stop(ctx, d.CgroupParent)
}

// ContainerCgroup is where a container of a pod with that parent is, below each hierarchy's mount point.
func (d *Daemon) ContainerCgroup(parent, id string) (string, error) {
	return cgroup.ResolveOCI(cgroup.ContainerPath(d.CgroupDriver, parent, "berth", id))
}
