// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"maps"
	"path"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerFacts are what a container needs beside the manifest.
type ContainerFacts struct {
	// Image is the ID of the image; ImageUID and ImageUser are the user that it asks for.
	Image     string
	ImageUID  *int64
	ImageUser string
	Attempt   uint32
	PodIPs    []string
	// VolumePath is where a volume, or a path below it, is on the host.
	VolumePath func(volume, subPath string) (string, error)
	// VolumeImage is the ID of the image of a volume, by the reference in the manifest.
	VolumeImage func(reference string) string
	// RecursiveReadOnly: the runtime handler can make read-only what is mounted below a mount.
	RecursiveReadOnly bool
	// FirstID is where the pod's users and groups begin on the host, if it has its own.
	FirstID uint32
	// HostsFile is the pod's /etc/hosts, empty for none.
	HostsFile string

	dry bool // the image's user is not known yet
}

// Container is one container as CreateContainer wants it.
func (p *Pod) Container(c *corev1.Container, f ContainerFacts) (*runtimeapi.ContainerConfig, error) {
	field := p.Field(c)
	wrap := func(err error) error { return fmt.Errorf("%s.%w", field, err) }
	env, err := p.env(c, f)
	if err != nil {
		return nil, wrap(err)
	}
	mounts, err := p.mounts(c, f)
	if err != nil {
		return nil, wrap(err)
	}
	resources, err := resources(c)
	if err != nil {
		return nil, wrap(err)
	}
	security, err := p.security(c, f)
	if err != nil {
		return nil, wrap(err)
	}
	signal, err := stopSignal(c)
	if err != nil {
		return nil, wrap(err)
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return nil, wrap(fmt.Errorf("workingDir: %q is not absolute", c.WorkingDir))
	}
	labels := p.kubernetesLabels()
	labels["io.kubernetes.container.name"] = c.Name
	known := environment(env)
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: f.Attempt},
		Image:       &runtimeapi.ImageSpec{Image: f.Image, UserSpecifiedImage: c.Image},
		Command:     expandAll(c.Command, known),
		Args:        expandAll(c.Args, known),
		WorkingDir:  c.WorkingDir,
		Envs:        env,
		Mounts:      mounts,
		Labels:      labels,
		Annotations: maps.Clone(p.Annotations),
		LogPath:     LogPath(c.Name, f.Attempt),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		StopSignal:  signal,
		Linux:       &runtimeapi.LinuxContainerConfig{Resources: resources, SecurityContext: security},
	}, nil
}

// LogPath is a container's log below the pod's log folder, as the kubelet names it.
func LogPath(container string, attempt uint32) string {
	return fmt.Sprintf("%s/%d.log", container, attempt)
}

const (
	minShares = 2
	period    = 100_000 // of the CPU quota, in microseconds: the kernel's default
	minQuota  = 1000    // what the kernel takes at least
)

// resources turns requests and limits into what cgroups know, as the kubelet does. A limit without a request is the request too.
func resources(c *corev1.Container) (*runtimeapi.LinuxContainerResources, error) {
	for list, quantities := range map[string]corev1.ResourceList{"limits": c.Resources.Limits, "requests": c.Resources.Requests} {
		for name, q := range quantities {
			switch {
			case name != corev1.ResourceCPU && name != corev1.ResourceMemory:
				return nil, fmt.Errorf("resources.%s.%s: only cpu and memory are supported", list, name)
			case q.Sign() < 0:
				return nil, fmt.Errorf("resources.%s.%s: %s is negative", list, name, q.String())
			}
		}
	}
	request, requested := c.Resources.Requests[corev1.ResourceCPU]
	limit, limited := c.Resources.Limits[corev1.ResourceCPU]
	if !requested && limited {
		request = limit
	}
	memory := c.Resources.Limits[corev1.ResourceMemory]
	if r := c.Resources.Requests[corev1.ResourceMemory]; !memory.IsZero() && r.Cmp(memory) > 0 {
		return nil, fmt.Errorf("resources.requests.memory: %s is more than the limit of %s", r.String(), memory.String())
	}
	if limited && requested && request.Cmp(limit) > 0 {
		return nil, fmt.Errorf("resources.requests.cpu: %s is more than the limit of %s", request.String(), limit.String())
	}
	out := &runtimeapi.LinuxContainerResources{
		CpuShares:          max(min(request.MilliValue()*1024/1000, 262144), minShares),
		CpuPeriod:          period,
		MemoryLimitInBytes: memory.Value(),
		// Without this a container would get as much swap again.
		MemorySwapLimitInBytes: memory.Value(),
	}
	if limited && !limit.IsZero() {
		out.CpuQuota = max(limit.MilliValue()*period/1000, minQuota)
	}
	return out, nil
}
