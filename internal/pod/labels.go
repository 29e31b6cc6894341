// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/selinux"
)

func labelOptions(o *runtimeapi.SELinuxOption) selinux.Options {
	return selinux.Options{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// chooseLabels gives the sandbox its labels. Without SELinux there are none, whatever the configuration asks for: a kubelet asks for them on every node.
func (s *Sandbox) chooseLabels() (selinux.Labels, error) {
	if s.m.parts.Labels == nil {
		return selinux.Labels{}, nil
	}
	all, err := s.m.parts.Labels.New(labelOptions(s.Config.GetLinux().GetSecurityContext().GetSelinuxOptions()))
	return all, askedLabels(err)
}

// chooseLabels gives the container its labels: its pod's, with what it asks for in their place.
func (c *Container) chooseLabels() (selinux.Labels, error) {
	pod := c.sandbox.facts().SELinux
	if c.m.parts.Labels == nil || pod == (selinux.Labels{}) { // the pod was made when there was no SELinux
		return selinux.Labels{}, nil
	}
	all, err := c.m.parts.Labels.Derive(pod, labelOptions(c.Config.GetLinux().GetSecurityContext().GetSelinuxOptions()))
	return all, askedLabels(err)
}

func askedLabels(err error) error {
	if errors.Is(err, selinux.ErrInvalid) {
		return fmt.Errorf("linux.security_context.selinux_options: %w: %w", ErrInvalid, err)
	}
	return err
}

func (m *Manager) releaseLabels(l selinux.Labels) {
	if m.parts.Labels != nil {
		m.parts.Labels.Release(l)
	}
}

func (m *Manager) holdLabels(l selinux.Labels) error {
	if m.parts.Labels == nil {
		return nil
	}
	return m.parts.Labels.Hold(l)
}

// relabel gives what is the pod's own its label, where there is one. A file system without labels has one for all its files, which is its mount's business.
func (m *Manager) relabel(path, label string) error {
	if m.parts.Labels == nil || label == "" {
		return nil
	}
	if err := m.parts.Labels.Relabel(path, label); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
