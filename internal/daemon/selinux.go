// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"github.com/berth-run/berth/internal/linux/host"
	"github.com/berth-run/berth/internal/linux/selinux"
	"github.com/berth-run/berth/internal/pod"
)

// openLabels returns nil, which is no Labels, where pods are not to be labelled.
func (d *daemon) openLabels() (pod.Labels, error) {
	if !d.cfg.SELinux || !host.SELinux() {
		return nil, nil
	}
	policy, err := selinux.Open()
	if err != nil {
		return nil, err
	}
	if policy == nil {
		d.log.Warn("the kernel has SELinux, and its policy no labels for containers: pods run without; install container-selinux")
		return nil, nil
	}
	return policy, nil
}
