// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Paths that no container needs and that tell or change something of the host; what the kubelet sends replaces them. Two empty lists
// are procMount Unmasked in a pod with a user namespace, the only one that may have it; elsewhere, a client that does not know them.
var (
	maskedPaths = []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func linuxSection(in Input) (*specs.Linux, error) {
	sc := in.Container.GetLinux().GetSecurityContext()
	asked := in.Container.GetLinux().GetResources()
	if len(asked.GetUnified()) > 0 && !in.Host.CgroupV2 {
		return nil, invalid("linux.resources.unified", "is for cgroup v2, this node has v1")
	}
	for i, h := range asked.GetHugepageLimits() {
		if h.GetLimit() > 0 && in.Host.NoHugePages {
			return nil, invalid(fmt.Sprintf("linux.resources.hugepage_limits[%d]", i), "%s: this node's cgroups have no hugetlb controller", h.GetPageSize())
		}
	}
	ns, err := namespaces(in)
	if err != nil {
		return nil, err
	}
	l := &specs.Linux{Namespaces: ns, RootfsPropagation: rootPropagation(in.Container.GetMounts()), CgroupsPath: in.CgroupsPath,
		Resources: resources(asked)}
	if !sc.GetPrivileged() {
		l.MaskedPaths, l.ReadonlyPaths = slices.Clone(sc.GetMaskedPaths()), slices.Clone(sc.GetReadonlyPaths())
		if len(l.MaskedPaths)+len(l.ReadonlyPaths) == 0 && in.UserNS == nil {
			l.MaskedPaths, l.ReadonlyPaths = slices.Clone(maskedPaths), slices.Clone(readonlyPaths)
		}
	}
	addDevices(l, in)
	return l, nil
}

// addDevices gives the container its devices, and all of the host's where it is privileged. The runtime itself adds what each
// container has: null, zero, full, random, urandom, tty, ptmx.
func addDevices(l *specs.Linux, in Input) {
	all := in.Container.GetLinux().GetSecurityContext().GetPrivileged() && !in.WithoutHostDevices
	// A wildcard rule, and what it starts from: everything is denied, unless the container has all of the host's devices.
	l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: all, Access: "rwm"}}
	taken := map[string]bool{}
	for _, d := range in.Devices {
		taken[d.Path] = true
		l.Devices = append(l.Devices, node(d))
		if !all {
			major, minor := d.Major, d.Minor
			l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: d.Access})
		}
	}
	if !all {
		return
	}
	for _, d := range in.HostDevices {
		if !taken[d.Path] {
			l.Devices = append(l.Devices, node(d))
		}
	}
}

func node(d Device) specs.LinuxDevice {
	mode, uid, gid := os.FileMode(d.Mode&0o777), d.UID, d.GID
	return specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &uid, GID: &gid}
}

func namespaces(in Input) ([]specs.LinuxNamespace, error) {
	sc := in.Container.GetLinux().GetSecurityContext()
	ns := append([]specs.LinuxNamespace{{Type: specs.MountNamespace}}, podNamespaces(in.Paths)...)
	// As in containerd: a privileged container manages the host's cgroups, and on v1 nobody expects a namespace of them.
	if in.Host.CgroupV2 && !sc.GetPrivileged() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	options := sc.GetNamespaceOptions()
	switch mode := options.GetPid(); {
	case mode == runtimeapi.NamespaceMode_NODE, mode == runtimeapi.NamespaceMode_POD && podPID(in.Sandbox) == runtimeapi.NamespaceMode_NODE:
		return ns, nil
	case mode == runtimeapi.NamespaceMode_CONTAINER:
		return append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace}), nil
	case in.Paths.PIDNS == "" && mode == runtimeapi.NamespaceMode_TARGET:
		return nil, invalid("linux.security_context.namespace_options.target_id", "container %q is not one of this pod", options.GetTargetId())
	case in.Paths.PIDNS == "":
		return nil, invalid("linux.security_context.namespace_options.pid", "is %s, but the pod's own is %s: there is none to share", mode, podPID(in.Sandbox))
	}
	return append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: in.Paths.PIDNS}), nil
}

// podNamespaces are those that all containers of a pod share.
func podNamespaces(p Paths) []specs.LinuxNamespace {
	var ns []specs.LinuxNamespace
	for _, n := range []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: p.NetNS}, {Type: specs.IPCNamespace, Path: p.IPCNS},
		{Type: specs.UTSNamespace, Path: p.UTSNS}, {Type: specs.UserNamespace, Path: p.UserNS}} {
		if n.Path != "" {
			ns = append(ns, n)
		}
	}
	return ns
}

func podPID(sandbox *runtimeapi.PodSandboxConfig) runtimeapi.NamespaceMode {
	return sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
}
