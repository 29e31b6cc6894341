// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cri"
	"github.com/berth-run/berth/internal/linux/apparmor"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/spec"
)

// profiles are the AppArmor profiles of the kernel. Implementation: apparmor.Profiles.
type profiles interface {
	Loaded(name string) (bool, error)
	EnsureDefault() error
	Reload() error
}

// loadProfile brings this version's default profile into the kernel.
func (m specMaker) loadProfile() error {
	if !m.host.AppArmor {
		return nil
	}
	return m.profiles.Reload()
}

// appArmor makes sure that the profile which the container asks for is loaded, before anything is started under it. Where the default one
// cannot be loaded, only those containers are refused that ask for it by name: the others run as on a node without AppArmor, and Status says so.
func (m specMaker) appArmor(in *spec.Input, sc *runtimeapi.LinuxContainerSecurityContext) error {
	if !m.host.AppArmor || sc.GetPrivileged() {
		return nil
	}
	asked, err := spec.AskedAppArmor(sc)
	if err != nil {
		return err
	}
	switch {
	case asked.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		return nil
	case asked.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		loaded, err := m.profiles.Loaded(asked.GetLocalhostRef())
		if err == nil && !loaded {
			err = fmt.Errorf("linux.security_context.apparmor: profile %q is not loaded on this node; load it with apparmor_parser -r: %w",
				asked.GetLocalhostRef(), pod.ErrInvalid)
		}
		return err
	}
	if err := m.profiles.EnsureDefault(); err == nil {
		in.Host.AppArmorDefault = apparmor.DefaultName
	} else if asked != nil {
		return fmt.Errorf("linux.security_context.apparmor: RuntimeDefault: %w: %w", pod.ErrState, err)
	}
	return nil
}

// conditions tells what of the node's confinement does not work, beside what the kubelet must know.
func (m specMaker) conditions() []cri.Condition {
	if !m.host.AppArmor {
		return nil
	}
	c := cri.Condition{Type: "AppArmorReady"}
	if loaded, err := m.profiles.Loaded(apparmor.DefaultName); err != nil {
		c.Reason, c.Message = "ProfilesNotKnown", err.Error()
	} else if !loaded {
		c.Reason, c.Message = "DefaultProfileNotLoaded", "profile "+apparmor.DefaultName+" is loaded with the next container; if that fails, the log says why"
	}
	return []cri.Condition{c}
}
