// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"os"

	"github.com/berth-run/berth/internal/image"
)

// root is whom the pod's root is on the host.
func (s *Sandbox) root() (uid, gid int) {
	if s.userNS == nil {
		return 0, 0
	}
	return int(s.userNS.UIDs.Host), int(s.userNS.GIDs.Host)
}

// give makes a file or a folder that a container works with the pod's root's.
func (s *Sandbox) give(path string) error {
	if s.userNS == nil {
		return nil
	}
	uid, gid := s.root()
	if err := os.Chown(path, uid, gid); err != nil {
		return fmt.Errorf("give to the pod's root: %w", err)
	}
	return nil
}

// letIn lets the pod's root pass through a folder, though not look around in it. The OCI runtime is that user already when it looks for the root
// file system, and no user of another pod.
func (s *Sandbox) letIn(dir string) error {
	if s.userNS == nil {
		return nil
	}
	_, gid := s.root()
	if err := os.Chown(dir, 0, gid); err != nil {
		return fmt.Errorf("let the pod's root in: %w", err)
	}
	if err := os.Chmod(dir, 0o710); err != nil {
		return fmt.Errorf("let the pod's root in: %w", err)
	}
	return nil
}

// owner is the pod's user namespace as package image wants it; nil: the host's.
func (s *Sandbox) owner() *image.Owner {
	if s.userNS == nil {
		return nil
	}
	uid, gid := s.root()
	return &image.Owner{UserNS: s.paths.pins.User, UID: uid, GID: gid}
}
