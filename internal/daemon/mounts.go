// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/fsys"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/linux/selinux"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/spec"
)

// mountSources looks at what the mounts of a container are made from. A host path that is missing is an error (CRI: Mount.host_path): a folder made
// in its place would hide the mistake.
func (m specMaker) mountSources(r pod.SpecRequest) ([]spec.MountSource, error) {
	doing := r.Doing
	if doing == nil {
		doing = func(string) {}
	}
	defer doing("")
	var all []spec.MountSource
	for i, asked := range r.Container.GetMounts() {
		if asked.GetImage() == nil {
			doing(fmt.Sprintf("volume %s (mounts[%d] %s)", asked.GetHostPath(), i, asked.GetContainerPath()))
		}
		source, err := m.mountSource(asked, r.Handler, r.ImageMounts[i])
		if err == nil && asked.GetSelinuxRelabel() && asked.GetImage() == nil {
			err = relabelSource(asked.GetHostPath(), r.Labels.Mount)
		}
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] %s: %w", i, asked.GetContainerPath(), err)
		}
		all = append(all, source)
	}
	return all, nil
}

// mountSource looks at one; image is where the image of an image volume is mounted.
func (m specMaker) mountSource(asked *runtimeapi.Mount, handler, image string) (spec.MountSource, error) {
	if asked.GetRecursiveReadOnly() && !m.can(handler).recursiveReadOnly {
		return spec.MountSource{}, fmt.Errorf("recursive_read_only: runtime handler %q: %w", handler, pod.ErrRecursiveReadOnly)
	}
	if asked.GetImage() != nil {
		return imageSource(asked, image)
	}
	if len(asked.GetUidMappings()) > 0 && !m.can(handler).mappedMounts {
		return spec.MountSource{}, fmt.Errorf("uidMappings: runtime handler %q: mapped mounts: %w", handler, pod.ErrUnsupported)
	}
	return hostSource(asked)
}

// imageSource finds the folder of an image volume. Nobody writes to it, so what was found stays true; links in the image lead nowhere else.
func imageSource(m *runtimeapi.Mount, root string) (spec.MountSource, error) {
	path, err := fsys.FolderInRoot(root, m.GetImageSubPath())
	if err != nil {
		return spec.MountSource{}, fmt.Errorf("image_sub_path: %w: %w: %w", pod.ErrImageVolume, pod.ErrInvalid, err)
	}
	return spec.MountSource{Path: path}, nil
}

func hostSource(m *runtimeapi.Mount) (spec.MountSource, error) {
	source, err := mount.OpenSource(m.GetHostPath())
	if err != nil {
		return spec.MountSource{}, fmt.Errorf("host_path: %w: %w", pod.ErrInvalid, err)
	}
	defer source.Close()
	flags, err := source.Flags()
	if err != nil {
		return spec.MountSource{}, fmt.Errorf("host_path: %w", err)
	}
	return spec.MountSource{Flags: flags}, checkPropagation(m, source)
}

// checkPropagation: what is mounted by one side reaches the other only where the source's mount takes part. The kernel would not complain, and the
// container would wait for a mount that never comes.
func checkPropagation(m *runtimeapi.Mount, source *mount.Source) error {
	wanted := m.GetPropagation()
	if wanted == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return nil
	}
	point, shared, slave, err := source.Propagation()
	switch {
	case err != nil:
		return fmt.Errorf("propagation: %w", err)
	case shared, slave && wanted == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: // a slave hears of its master's mounts, and tells none
		return nil
	case wanted == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return fmt.Errorf("propagation is %s, but %s is on the mount %s, which is not shared; make it so (mount --make-rshared %[3]s): %w", wanted,
			m.GetHostPath(), point, pod.ErrInvalid)
	}
	return fmt.Errorf("propagation is %s, but %s is on the mount %s, which is neither shared nor a slave; make it shared (mount --make-rshared %[3]s): %w",
		wanted, m.GetHostPath(), point, pod.ErrInvalid)
}

// relabelSource makes a host path the container's own, where SELinux keeps it from what is not (CRI: Mount.selinux_relabel). A file system that knows no
// labels has one for all its files, which a relabelling does not change: as in other runtimes that is no error.
func relabelSource(path, label string) error {
	if label == "" {
		return nil
	}
	err := selinux.Relabel(path, label)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return nil
	case errors.Is(err, selinux.ErrSystem):
		return fmt.Errorf("selinux_relabel: %w: %w", pod.ErrInvalid, err)
	case err != nil:
		return fmt.Errorf("selinux_relabel: %w", err)
	}
	return nil
}
