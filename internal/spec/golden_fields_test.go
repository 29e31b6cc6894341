// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// elsewhere are the fields of a container's configuration that make nothing of the OCI spec here, each with who makes something of it and holds it by tests.
var elsewhere = map[string]string{
	"ContainerConfig.metadata": "in every case: fill keeps the ordinary one", "ContainerMetadata.name": "as metadata", "ContainerMetadata.attempt": "pod: names",
	"ImageSpec.user_specified_image": "in every case: fill keeps the ordinary one", "ImageSpec.runtime_handler": "pulls", "ImageSpec.image_ref": "statuses",
	"ContainerConfig.log_path": "the shim's", "ContainerConfig.stdin_once": "the shim's", "ContainerConfig.stop_signal": "StopSignal: TestTheCRIsStopSignalsAllHaveANumber",
	"ContainerConfig.windows": "refused: TestBadContainers", "ContainerConfig.CDI_devices": "package cdi", "CDIDevice.name": "package cdi",
	"LinuxContainerSecurityContext.run_as_user": "Input.User, by package user", "LinuxContainerSecurityContext.run_as_group": "Input.User",
	"LinuxContainerSecurityContext.run_as_username": "Input.User", "LinuxContainerSecurityContext.supplemental_groups": "Input.User",
	"LinuxContainerSecurityContext.supplemental_groups_policy": "Input.User",
	"LinuxContainerSecurityContext.seccomp":                    "Input.Profile: TestTheDefaultSeccompProfileFollowsCapabilities; a case would hold the library's thousand lines",
	"LinuxContainerSecurityContext.seccomp_profile_path":       "refused: TestBadContainers",
}

// A field that the CRI gains needs a case, or a reason.
func TestEveryFieldHasAGoldenCase(t *testing.T) {
	var all strings.Builder
	for _, data := range cases(t) {
		all.Write(data)
	}
	text, seen := all.String(), map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] || strings.HasPrefix(string(m.Name()), "Windows") {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			name := string(m.Name()) + "." + string(f.Name())
			has := strings.Contains(text, `"`+f.JSONName()+`"`) || strings.Contains(text, `"`+string(f.Name())+`"`)
			if !has && elsewhere[name] == "" {
				t.Errorf("%s is in no case of testdata", name)
			}
			if has && elsewhere[name] != "" {
				t.Errorf("%s is excepted without need", name)
			}
			if f.Message() != nil && !f.IsMap() {
				walk(f.Message())
			}
		}
	}
	walk((&runtimeapi.ContainerConfig{}).ProtoReflect().Descriptor())
}
