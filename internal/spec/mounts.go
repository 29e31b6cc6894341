// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// allMounts are the defaults, then the pod's files, then the CRI's mounts, by depth, so that none hides another.
// A CRI mount on a default's place, or on a folder above it, replaces it: who mounts the host's /dev wants the host's /dev/pts too.
func allMounts(in Input) ([]specs.Mount, error) {
	asked, err := criMounts(in.Container.GetMounts(), in.Sources)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(defaultMounts(in), anonymousVolumes(in.Volumes), podFiles(in))
	all = slices.DeleteFunc(all, func(m specs.Mount) bool {
		return slices.ContainsFunc(asked, func(a specs.Mount) bool { return atOrBelow(m.Destination, a.Destination) })
	})
	return append(all, asked...), nil
}

func atOrBelow(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func defaultMounts(in Input) []specs.Mount {
	sys := "ro"
	if in.Container.GetLinux().GetSecurityContext().GetPrivileged() {
		sys = "rw"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: terminals(in.UserNS)},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sysfs(in, sys),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", sys}},
		sharedMemory(in.Paths),
	}
}

// sysfs shows the devices of a network namespace, so only who owns that may mount it: with the host's network, a container in a user namespace
// gets the host's /sys, read-only through and through.
func sysfs(in Input, access string) specs.Mount {
	if in.UserNS != nil && in.Paths.NetNS == "" {
		return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "rro", "nosuid", "noexec", "nodev"}}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
}

// terminals belong to the group tty, 5 in every distribution, where the user namespace has it.
func terminals(ns *UserNamespace) []string {
	const tty = 5
	options := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if ns == nil || ns.GIDs.Size > tty {
		options = append(options, "gid="+strconv.Itoa(tty))
	}
	return options
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
