// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"encoding/json"
	"log/slog"
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func podMessages(pods []Pod) []*api.PodSandbox {
	out := make([]*api.PodSandbox, 0, len(pods))
	for _, p := range pods {
		out = append(out, podMessage(p))
	}
	return out
}

// podMessage is a pod as plugins want it. Maps are copied: the library hands the same message to all of them.
func podMessage(p Pod) *api.PodSandbox {
	m := &api.PodSandbox{Id: p.ID, Name: p.Name, Uid: p.UID, Namespace: p.Namespace, Labels: maps.Clone(p.Labels),
		Annotations: maps.Clone(p.Annotations), RuntimeHandler: p.Handler, Linux: &api.LinuxPodSandbox{CgroupParent: p.CgroupParent,
			PodOverhead: fromCRI(p.Overhead), PodResources: fromCRI(p.Resources)}}
	for _, kind := range slices.Sorted(maps.Keys(p.Namespaces)) {
		m.Linux.Namespaces = append(m.Linux.Namespaces, &api.LinuxNamespace{Type: kind, Path: p.Namespaces[kind]})
	}
	for _, ip := range p.IPs {
		m.Ips = append(m.Ips, ip.String())
	}
	return m
}

func containerMessages(containers []Container, log *slog.Logger) []*api.Container {
	out := make([]*api.Container, 0, len(containers))
	for _, c := range containers {
		m, err := containerMessage(c)
		if err != nil {
			log.Warn("a plugin is told of a container without its spec", "container", c.ID, "error", err)
		}
		out = append(out, m)
	}
	return out
}

var states = map[runtimeapi.ContainerState]api.ContainerState{
	runtimeapi.ContainerState_CONTAINER_CREATED: api.ContainerState_CONTAINER_CREATED,
	runtimeapi.ContainerState_CONTAINER_RUNNING: api.ContainerState_CONTAINER_RUNNING,
	runtimeapi.ContainerState_CONTAINER_EXITED:  api.ContainerState_CONTAINER_STOPPED,
}

// containerMessage is a container as plugins want it. The message is usable also with an error, which is about the spec.
func containerMessage(c Container) (*api.Container, error) {
	m := &api.Container{Id: c.ID, PodSandboxId: c.Pod, Name: c.Name, State: states[c.State], Labels: maps.Clone(c.Labels),
		Annotations: maps.Clone(c.Annotations), Pid: uint32(c.PID), CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt,
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: c.Message, Linux: &api.LinuxContainer{},
		Image: &api.Image{Name: c.ImageName, Digest: c.ImageDigest, ConfigDigest: c.ImageID}}
	if c.Seccomp != nil {
		m.Linux.SeccompProfile = &api.SecurityProfile{LocalhostRef: c.Seccomp.GetLocalhostRef(),
			ProfileType: api.SecurityProfile_ProfileType(c.Seccomp.GetProfileType())}
	}
	if len(c.Spec) == 0 {
		return m, nil
	}
	var s specs.Spec
	if err := json.Unmarshal(c.Spec, &s); err != nil {
		return m, err
	}
	addSpec(m, &s)
	return m, nil
}

func addSpec(m *api.Container, s *specs.Spec) {
	m.Mounts, m.Hooks = api.FromOCIMounts(s.Mounts), api.FromOCIHooks(s.Hooks)
	// A spec's annotations are the runtime's; a plugin that adjusts some must see them.
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	for k, v := range s.Annotations {
		if _, taken := m.Annotations[k]; !taken {
			m.Annotations[k] = v
		}
	}
	if p := s.Process; p != nil {
		m.Args, m.Env = p.Args, p.Env
		m.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
		for _, r := range p.Rlimits {
			m.Rlimits = append(m.Rlimits, &api.POSIXRlimit{Type: r.Type, Hard: r.Hard, Soft: r.Soft})
		}
		m.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		m.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		m.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
	}
	if l := s.Linux; l != nil {
		m.Linux.Namespaces, m.Linux.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
		m.Linux.Resources, m.Linux.CgroupsPath = api.FromOCILinuxResources(l.Resources, nil), l.CgroupsPath
		m.Linux.Sysctl, m.Linux.NetDevices = l.Sysctl, api.FromOCILinuxNetDevices(l.NetDevices)
		if l.Seccomp != nil {
			m.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
		}
	}
}
