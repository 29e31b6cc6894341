// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/fsys"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/spec"
)

// seccompRoot is where the kubelet keeps Localhost profiles when it names them without a path.
const seccompRoot = "/var/lib/kubelet/seccomp"

// maxProfile bounds a seccomp profile, in bytes: the largest known ones have some 50 KiB.
const maxProfile = 1 << 20

// seccompProfile reads what a container is confined with. No profile given is unconfined, as the CRI has it: the kubelet always names one.
func seccompProfile(p *runtimeapi.SecurityProfile) (spec.Profile, error) {
	if p == nil || p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return spec.Profile{}, nil
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
		return spec.Profile{Default: true}, nil
	}
	path, err := seccompPath(p.GetLocalhostRef())
	if err != nil {
		return spec.Profile{}, fmt.Errorf("linux.security_context.seccomp.localhost_ref: %w: %w", pod.ErrInvalid, err)
	}
	raw, err := fsys.ReadFile(path, maxProfile)
	if err != nil {
		return spec.Profile{}, fmt.Errorf("linux.security_context.seccomp.localhost_ref: %w: %w", pod.ErrInvalid, err)
	}
	return spec.Profile{Path: path, JSON: raw}, nil
}

// seccompPath keeps a relative name inside the kubelet's folder.
func seccompPath(ref string) (string, error) {
	switch {
	case ref == "":
		return "", errors.New("is empty")
	case filepath.IsAbs(ref):
		return ref, nil
	case !filepath.IsLocal(ref):
		return "", fmt.Errorf("%q leads out of %s", ref, seccompRoot)
	}
	return filepath.Join(seccompRoot, ref), nil
}
