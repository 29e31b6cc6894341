// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (p *Pod) validateVolumes() []error {
	var errs []error
	seen := map[string]bool{}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		field := fmt.Sprintf("spec.volumes[%d]", i)
		if why := validation.IsDNS1123Label(v.Name); len(why) > 0 {
			errs = append(errs, fmt.Errorf("%s.name: %q: %s", field, v.Name, why[0]))
		}
		if seen[v.Name] {
			errs = append(errs, fmt.Errorf("%s.name: %q is used twice", field, v.Name))
		}
		seen[v.Name] = true
		if err := validVolume(v); err != nil {
			errs = append(errs, fmt.Errorf("%s%w", field, err))
		}
	}
	return errs
}

// validVolume checks what a volume is. One of no kind is an empty folder in the API.
func validVolume(v *corev1.Volume) error {
	kinds := 0
	for _, is := range []bool{v.EmptyDir != nil, v.HostPath != nil, v.Image != nil} {
		if is {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return errors.New(": is more than one of emptyDir, hostPath and image")
	case v.EmptyDir != nil:
		if m := v.EmptyDir.Medium; m != corev1.StorageMediumDefault && m != corev1.StorageMediumMemory {
			return fmt.Errorf(".emptyDir.medium: %q is not supported: leave it out, or Memory", m)
		}
	case v.HostPath != nil:
		if !strings.HasPrefix(v.HostPath.Path, "/") {
			return fmt.Errorf(".hostPath.path: %q is not absolute", v.HostPath.Path)
		}
	case v.Image != nil && v.Image.Reference == "":
		return errors.New(".image.reference: is missing")
	case v.Image != nil:
		if err := validPolicy(v.Image.PullPolicy); err != nil {
			return fmt.Errorf(".image.pullPolicy: %w", err)
		}
	default:
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	return nil
}

// Volume is the volume of that name, nil if there is none.
func (p *Pod) Volume(name string) *corev1.Volume {
	for i := range p.Spec.Volumes {
		if p.Spec.Volumes[i].Name == name {
			return &p.Spec.Volumes[i]
		}
	}
	return nil
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
	volume := p.Volume(m.Name)
	switch {
	case volume == nil:
		return nil, fmt.Errorf("name: there is no volume %q", m.Name)
	case !path.IsAbs(m.MountPath) || path.Clean(m.MountPath) == "/":
		return nil, fmt.Errorf("mountPath: %q is not an absolute path below /", m.MountPath)
	case m.SubPath != "" && !localPath(m.SubPath):
		return nil, fmt.Errorf("subPath: %q must be relative and not lead out of the volume", m.SubPath)
	}
	// An image is never written to, whatever the manifest says (KEP-4639).
	out := &runtimeapi.Mount{ContainerPath: path.Clean(m.MountPath), Readonly: m.ReadOnly || volume.Image != nil}
	var err error
	if out.Propagation, err = propagation(c, m); err != nil {
		return nil, err
	}
	if out.RecursiveReadOnly, err = recursiveReadOnly(m, out, f); err != nil {
		return nil, err
	}
	if volume.Image != nil {
		out.Image = &runtimeapi.ImageSpec{Image: f.VolumeImage(volume.Image.Reference), UserSpecifiedImage: volume.Image.Reference}
		out.ImageSubPath = m.SubPath
		return out, nil
	}
	if out.HostPath, err = f.VolumePath(m.Name, m.SubPath); err != nil {
		return nil, fmt.Errorf("name: volume %q: %w", m.Name, err)
	}
	// On the host a volume belongs to whom it belongs to in the pod.
	if p.OwnUsers() {
		out.UidMappings, out.GidMappings = mapping(f.FirstID), mapping(f.FirstID)
	}
	return out, nil
}

func propagation(c *corev1.Container, m corev1.VolumeMount) (runtimeapi.MountPropagation, error) {
	if m.MountPropagation == nil {
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE, nil
	}
	switch *m.MountPropagation {
	case corev1.MountPropagationNone:
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE, nil
	case corev1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, nil
	case corev1.MountPropagationBidirectional:
		if !privileged(c) {
			return 0, errors.New("mountPropagation: Bidirectional is for privileged containers")
		}
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, nil
	}
	return 0, fmt.Errorf("mountPropagation: %q is not one of None, HostToContainer, Bidirectional", *m.MountPropagation)
}

// recursiveReadOnly tells whether what is mounted below is read-only too. IfPossible depends on the runtime handler (KEP-3857).
func recursiveReadOnly(m corev1.VolumeMount, out *runtimeapi.Mount, f ContainerFacts) (bool, error) {
	if m.RecursiveReadOnly == nil || *m.RecursiveReadOnly == corev1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	switch {
	case *m.RecursiveReadOnly != corev1.RecursiveReadOnlyEnabled && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyIfPossible:
		return false, fmt.Errorf("recursiveReadOnly: %q is not one of Disabled, IfPossible, Enabled", *m.RecursiveReadOnly)
	case !out.Readonly:
		return false, fmt.Errorf("recursiveReadOnly: %s wants readOnly: true", *m.RecursiveReadOnly)
	case out.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return false, fmt.Errorf("recursiveReadOnly: %s cannot be combined with mountPropagation", *m.RecursiveReadOnly)
	}
	return *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled || f.RecursiveReadOnly, nil
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
