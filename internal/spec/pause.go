// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// nobody is the user that PID 1 of a shared PID namespace runs as: other containers of the pod must not be able to reach
// the host through its /proc entry, so it shares neither root's user ID nor any capability with them.
const nobody = 65535

// pauseOOMScore: with PID 1 all of the pod's processes end, so it goes after everything but the node's own.
const pauseOOMScore = -998

// GeneratePause makes the spec of PID 1 of a pod with a shared PID namespace: the static berth-shim in an otherwise empty root,
// confined more than any container: the user, group, profiles and privileges of the sandbox's security context are for containers.
func GeneratePause(in Input) (*specs.Spec, error) {
	ns := append([]specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}, podNamespaces(in.Paths)...)
	if in.Host.CgroupV2 {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	user := specs.User{UID: nobody, GID: nobody}
	if in.UserNS != nil { // its root is nobody on the host, so any of its users will do
		user = specs.User{UID: min(nobody, in.UserNS.UIDs.Size-1), GID: min(nobody, in.UserNS.GIDs.Size-1)}
	}
	md := in.Sandbox.GetMetadata()
	s := &specs.Spec{
		Version: ociVersion,
		Root:    &specs.Root{Path: in.Paths.Rootfs, Readonly: true},
		// One thread and little garbage: it only waits.
		Process: &specs.Process{Args: []string{"/pause", "pause"}, Env: []string{"GOMAXPROCS=1", "GOGC=25"}, Cwd: "/", User: user,
			Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true, ApparmorProfile: in.Host.AppArmorDefault, SelinuxLabel: in.Labels.Process, Rlimits: rlimits(in.Host), OOMScoreAdj: oomScore(pauseOOMScore, in.Host)},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
			{Destination: "/pause", Type: "bind", Source: in.Paths.PauseBinary, Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{MountLabel: in.Labels.Mount, Namespaces: ns, CgroupsPath: in.CgroupsPath, MaskedPaths: slices.Clone(maskedPaths), ReadonlyPaths: slices.Clone(readonlyPaths),
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}},
		Annotations: withOthers(in.Annotations, withScope(in, map[string]string{
			"io.kubernetes.cri.container-type":    "sandbox",
			"io.kubernetes.cri.sandbox-id":        in.SandboxID,
			"io.kubernetes.cri.sandbox-name":      md.GetName(),
			"io.kubernetes.cri.sandbox-namespace": md.GetNamespace(),
			"io.kubernetes.cri.sandbox-uid":       md.GetUid(),
		})),
	}
	// Whatever the pod's own profile is: that one is for the pod's programs, and this one is ours.
	return s, applySeccomp(s, Profile{Default: true}, in.Host)
}
