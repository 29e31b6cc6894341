// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A container can share the PID namespace of another one of its pod (CRI: NamespaceMode TARGET, an ephemeral container). That one may end and its
// PID become another's at any moment, so the namespace is looked for at the start, held, and held on to until the runtime is in it.

// target is the container whose PID namespace is wanted; nil: none. ErrInvalid: the pod has no such container.
func (c *Container) target() (*Container, error) {
	o := c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if o.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil, nil
	}
	t, err := c.m.ContainerByID(o.GetTargetId())
	if err == nil && t.sandbox != c.sandbox {
		err = fmt.Errorf("belongs to %s", t.sandbox)
	}
	if err != nil {
		return nil, fmt.Errorf("linux.security_context.namespace_options.target_id: container %q: %w: %w", o.GetTargetId(), ErrInvalid, err)
	}
	return t, nil
}

// checkTarget tells at the creation what the start could only tell later.
func (c *Container) checkTarget() error {
	t, err := c.target()
	if err != nil || t == nil {
		return err
	}
	if state := t.Status().State; state == runtimeapi.ContainerState_CONTAINER_EXITED {
		return fmt.Errorf("target_id: %s: has exited: %w", t, ErrState)
	}
	return nil
}

// pinTarget pins the target's PID namespace until unpinTarget.
func (c *Container) pinTarget() error {
	t, err := c.target()
	if err != nil || t == nil {
		return err
	}
	st := t.Status()
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("target_id: %s: is not running but %s: %w", t, stateName(st.State), ErrState)
	}
	err = c.m.parts.Host.PinPID(st.PID, t.ID, c.paths.targetPID)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("target_id: %s: has just ended: %w", t, ErrState)
	}
	return err
}

// unpinTarget is idempotent.
func (c *Container) unpinTarget() error {
	if c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil
	}
	return c.m.parts.Host.Unpin(c.paths.targetPID)
}
