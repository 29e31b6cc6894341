// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MountSource is what a CRI mount was found to be on this host.
type MountSource struct {
	// Path replaces Mount.host_path: where an image volume is mounted. Empty leaves host_path.
	Path string
	// Flags are those that the mount which the path lies on has: "ro", "nosuid", "nodev", "noexec". A bind mount keeps them; the OCI runtime would
	// drop those that it is not told as soon as it is told any.
	Flags []string
}

// criMounts renders what the CRI asks for, by depth. Of two mounts on one place the later one wins, as it would in the kernel.
// Sources are those of the mounts, in their order, or none where only the request is checked.
func criMounts(asked []*runtimeapi.Mount, sources []MountSource) ([]specs.Mount, error) {
	var all []specs.Mount
	at := map[string]int{}
	for i, m := range asked {
		var source MountSource
		if i < len(sources) {
			source = sources[i]
		}
		out, err := criMount(fmt.Sprintf("mounts[%d]", i), m, source)
		if err != nil {
			return nil, err
		}
		if earlier, found := at[out.Destination]; found {
			all[earlier] = out
			continue
		}
		at[out.Destination] = len(all)
		all = append(all, out)
	}
	byDepth(all)
	return all, nil
}

func byDepth(all []specs.Mount) {
	slices.SortStableFunc(all, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
}

func criMount(field string, m *runtimeapi.Mount, source MountSource) (specs.Mount, error) {
	if err := validMount(field, m); err != nil {
		return specs.Mount{}, err
	}
	options := []string{"rbind", propagations[m.GetPropagation()]}
	flags := slices.Concat(source.Flags, m.GetMountOptions())
	switch {
	case m.GetRecursiveReadOnly():
		options = append(options, "rro")
	case m.GetReadonly():
		flags = append(flags, "ro")
	}
	// Nothing says "rw": it would make a volume writable that is mounted read-only on the host, and drop the host's other flags.
	if len(flags) > 0 {
		slices.Sort(flags)
		options = append(options, slices.Compact(flags)...)
	}
	out := specs.Mount{Destination: path.Clean(m.GetContainerPath()), Type: "bind", Source: m.GetHostPath(), Options: options}
	if source.Path != "" {
		out.Source = source.Path
	}
	if m.GetImage().GetImage() == "" { // an image volume is mapped where it is mounted: its layers, not the overlay
		out.UIDMappings, out.GIDMappings = mappings(m.GetUidMappings()), mappings(m.GetGidMappings())
	}
	return out, nil
}

var propagations = map[runtimeapi.MountPropagation]string{
	runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           "rprivate",
	runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "rslave",
	runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     "rshared",
}

// mountFlags are the mount_options that CRI has (KEP-5855). All take something away: what gives (exec, dev, suid, rw) is not a pod's to ask for.
var mountFlags = []string{"nodev", "noexec", "nosuid"}

func validMount(field string, m *runtimeapi.Mount) error {
	dest, image := m.GetContainerPath(), m.GetImage()
	switch {
	case !path.IsAbs(dest) || strings.ContainsRune(dest, 0):
		return invalid(field+".container_path", "%q, for host path %q, is not an absolute path", dest, m.GetHostPath())
	case path.Clean(dest) == "/":
		return invalid(field+".container_path", "%q is the root itself", dest)
	case image == nil && (!path.IsAbs(m.GetHostPath()) || strings.ContainsRune(m.GetHostPath(), 0)):
		return invalid(field+".host_path", "%q (for %s) is not an absolute path", m.GetHostPath(), dest)
	case image == nil && m.GetImageSubPath() != "":
		return invalid(field+".image_sub_path", "is set without an image")
	case propagations[m.GetPropagation()] == "":
		return invalid(field+".propagation", "%d is unknown", m.GetPropagation())
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid(field+".recursive_read_only", "%s: wants readonly too", dest)
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+".recursive_read_only", "%s: wants propagation PRIVATE, is %s", dest, m.GetPropagation())
	}
	for i, o := range m.GetMountOptions() {
		if !slices.Contains(mountFlags, o) {
			return invalid(fmt.Sprintf("%s.mount_options[%d]", field, i), "%q can be %s only", o, strings.Join(mountFlags, ", "))
		}
	}
	if image != nil {
		if err := validImageVolume(field, m); err != nil {
			return err
		}
	}
	return validMountMappings(field, m)
}

// validImageVolume: see KEP-4639. The sub-path is looked up inside of the image; ".." in it can only be an attempt at something else.
func validImageVolume(field string, m *runtimeapi.Mount) error {
	sub := m.GetImageSubPath()
	switch {
	case m.GetImage().GetImage() == "":
		return invalid(field+".image.image", "is empty")
	case m.GetHostPath() != "":
		return invalid(field, "host_path and image exclude each other")
	case !m.GetReadonly():
		return invalid(field+".readonly", "%s: is false, but an image volume is always read-only", m.GetContainerPath())
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+".propagation", "%s: an image volume wants PRIVATE, is %s", m.GetContainerPath(), m.GetPropagation())
	case path.IsAbs(sub) || strings.ContainsRune(sub, 0) || slices.Contains(strings.Split(sub, "/"), ".."):
		return invalid(field+".image_sub_path", "%q is not a relative path without \"..\"", sub)
	}
	return nil
}

// validMountMappings: a file system knows users and groups, so it takes both or neither. Several ranges are fine.
func validMountMappings(field string, m *runtimeapi.Mount) error {
	if (len(m.GetUidMappings()) == 0) != (len(m.GetGidMappings()) == 0) {
		return invalid(field, "has %d uidMappings and %d gidMappings, wants both or none", len(m.GetUidMappings()), len(m.GetGidMappings()))
	}
	for _, list := range []struct {
		name     string
		mappings []*runtimeapi.IDMapping
	}{{"uidMappings", m.GetUidMappings()}, {"gidMappings", m.GetGidMappings()}} {
		if len(list.mappings) > maxMappings {
			return invalid(field+"."+list.name, "%d ranges, the kernel takes %d", len(list.mappings), maxMappings)
		}
		for i, one := range list.mappings {
			if err := validRange(fmt.Sprintf("%s.%s[%d]", field, list.name, i), one); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxMappings is the kernel's UID_GID_MAP_MAX_EXTENTS.
const maxMappings = 340
