// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"net/netip"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is what plugins are told of a pod sandbox.
type Pod struct {
	ID, Name, Namespace, UID string
	Labels, Annotations      map[string]string
	Handler                  string
	CgroupParent             string
	// Overhead and Resources are the kubelet's sums; nil where it gave none.
	Overhead, Resources *runtimeapi.LinuxContainerResources
	// Namespaces are the pinned ones: an OCI namespace type → a path on the host.
	Namespaces map[string]string
	IPs        []netip.Addr
}

// Container is what plugins are told of a container. Times are Unix nanoseconds; 0 means not yet.
type Container struct {
	ID, Pod, Name       string
	State               runtimeapi.ContainerState
	Labels, Annotations map[string]string
	// Spec is the container's config.json; nil where it cannot be read any more.
	Spec []byte
	// Seccomp is the profile that the CRI asked for.
	Seccomp                          *runtimeapi.SecurityProfile
	PID                              int
	CreatedAt, StartedAt, FinishedAt int64
	ExitCode                         int32
	Reason, Message                  string
	ImageName, ImageDigest, ImageID  string
}

// Update changes the resources of a container; fields without a value stay as they are.
type Update struct {
	Container string
	Resources *runtimeapi.LinuxContainerResources
	// IgnoreFailure: who asked goes on without it.
	IgnoreFailure bool
}

// Created is the plugins' say in a creation.
type Created struct {
	// Spec is the config.json to use.
	Spec []byte
	// Resources replace those of the container's configuration; nil: no plugin changed any.
	Resources *runtimeapi.LinuxContainerResources
	// Updates are of other containers, to make room for this one.
	Updates []Update
}

// Event is a step in the life of a pod or container that plugins are told about.
type Event int

// Events that cannot be refused tell what is so already, or what must not fail.
const (
	RunSandbox Event = iota // can be refused
	PostUpdateSandbox
	StopSandbox
	RemoveSandbox
	PostCreateContainer
	StartContainer // can be refused
	PostStartContainer
	PostUpdateContainer
	RemoveContainer
)
