// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// allMounts are the defaults, then the pod's files, then the CRI's mounts, by depth, so that none hides another.
// A CRI mount on a default's place, or on a folder above it, replaces it: who mounts the host's /dev wants the host's /dev/pts too.
func allMounts(in Input) ([]specs.Mount, error) {
	asked, err := criMounts(in.Container.GetMounts())
	if err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(append(defaultMounts(in), podFiles(in)...), func(m specs.Mount) bool {
		return slices.ContainsFunc(asked, func(a specs.Mount) bool {
			return a.Destination == m.Destination || strings.HasPrefix(m.Destination, a.Destination+"/")
		})
	})
	return append(all, asked...), nil
}

func defaultMounts(in Input) []specs.Mount {
	sys := "ro"
	if in.Container.GetLinux().GetSecurityContext().GetPrivileged() {
		sys = "rw"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sys}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", sys}},
		sharedMemory(in.Paths),
	}
}

// sharedMemory is the pod's; the host's only where the container is in the host's IPC namespace.
func sharedMemory(p Paths) specs.Mount {
	m := specs.Mount{Destination: "/dev/shm", Type: "bind", Source: p.Shm, Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
	switch {
	case p.Shm == "" && p.IPCNS == "":
		m.Source = "/dev/shm"
	case p.Shm == "":
		m.Type, m.Source, m.Options = "tmpfs", "shm", []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}
	}
	return m
}

// podFiles are resolv.conf and hostname; /etc/hosts is the kubelet's, which mounts its own.
func podFiles(in Input) []specs.Mount {
	access := "rw"
	if in.Container.GetLinux().GetSecurityContext().GetReadonlyRootfs() {
		access = "ro"
	}
	var m []specs.Mount
	for _, f := range []struct{ dest, source string }{{"/etc/resolv.conf", in.Paths.ResolvConf}, {"/etc/hostname", in.Paths.Hostname}} {
		if f.source != "" {
			m = append(m, specs.Mount{Destination: f.dest, Type: "bind", Source: f.source, Options: []string{"rbind", "rprivate", access}})
		}
	}
	return m
}

// rootPropagation lets through what the mounts below need: without it the runtime makes the whole tree private.
func rootPropagation(mounts []*runtimeapi.Mount) string {
	out := ""
	for _, m := range mounts {
		switch m.GetPropagation() {
		case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			return "rshared"
		case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			out = "rslave"
		}
	}
	return out
}
