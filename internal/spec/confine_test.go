// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAnAppArmorProfileMayHaveTheOldFieldsPrefix(t *testing.T) {
	for _, ref := range []string{"mine", "localhost/mine"} {
		asked := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
		p, err := AskedAppArmor(&runtimeapi.LinuxContainerSecurityContext{Apparmor: asked})
		if err != nil || p.GetLocalhostRef() != "mine" || asked.LocalhostRef != ref {
			t.Errorf("%s: %v, %v", ref, p, err)
		}
	}
}
