// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"

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

func (p *Pod) mounts(c *corev1.Container, f ContainerFacts) ([]*runtimeapi.Mount, error) {
	var all []*runtimeapi.Mount
	taken := map[string]bool{}
	for i, m := range c.VolumeMounts {
		out, err := p.mount(c, m, f)
		if err == nil && taken[path.Clean(m.MountPath)] {
			err = fmt.Errorf("mountPath: %q is used twice", m.MountPath)
		}
		if err != nil {
			return nil, fmt.Errorf("volumeMounts[%d].%w", i, err)
		}
		taken[path.Clean(m.MountPath)] = true
		all = append(all, out)
	}
	if f.HostsFile != "" && !taken["/etc/hosts"] {
		all = append(all, &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: f.HostsFile})
	}
	return all, nil
}

func (p *Pod) mount(c *corev1.Container, m corev1.VolumeMount, f ContainerFacts) (*runtimeapi.Mount, error) {
	switch {
	case p.Volume(m.Name) == nil:
		return nil, fmt.Errorf("name: there is no volume %q", m.Name)
	case !path.IsAbs(m.MountPath) || path.Clean(m.MountPath) == "/":
		return nil, fmt.Errorf("mountPath: %q is not an absolute path below /", m.MountPath)
	case m.SubPath != "" && !localPath(m.SubPath):
		return nil, fmt.Errorf("subPath: %q must be relative and not lead out of the volume", m.SubPath)
	}
	out := &runtimeapi.Mount{ContainerPath: path.Clean(m.MountPath), Readonly: m.ReadOnly}
	if m.MountPropagation != nil {
		switch *m.MountPropagation {
		case corev1.MountPropagationNone:
		case corev1.MountPropagationHostToContainer:
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case corev1.MountPropagationBidirectional:
			if !privileged(c) {
				return nil, errors.New("mountPropagation: Bidirectional is for privileged containers")
			}
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		default:
			return nil, fmt.Errorf("mountPropagation: %q is not one of None, HostToContainer, Bidirectional", *m.MountPropagation)
		}
	}
	host, err := f.VolumePath(m.Name, m.SubPath)
	if err != nil {
		return nil, fmt.Errorf("name: volume %q: %w", m.Name, err)
	}
	out.HostPath = host
	return out, nil
}

// localPath tells that a path stays below where it starts, by its words.
func localPath(p string) bool {
	if path.IsAbs(p) || strings.ContainsRune(p, 0) {
		return false
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return false
		}
	}
	return true
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
