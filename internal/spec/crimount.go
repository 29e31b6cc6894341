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

// criMounts renders what the CRI asks for, by depth. Of two mounts on one place the later one wins, as it would in the kernel.
func criMounts(asked []*runtimeapi.Mount) ([]specs.Mount, error) {
	var all []specs.Mount
	at := map[string]int{}
	for i, m := range asked {
		out, err := criMount(fmt.Sprintf("mounts[%d]", i), m)
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
	slices.SortStableFunc(all, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return all, nil
}

func depth(p string) int { return strings.Count(p, "/") }

func criMount(field string, m *runtimeapi.Mount) (specs.Mount, error) {
	if err := validMount(field, m); err != nil {
		return specs.Mount{}, err
	}
	options := []string{"rbind"}
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options = append(options, "rshared")
	default:
		return specs.Mount{}, invalid(field+".propagation", "%d is unknown", m.GetPropagation())
	}
	switch {
	case m.GetRecursiveReadOnly():
		options = append(options, "rro")
	case m.GetReadonly():
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	return specs.Mount{Destination: path.Clean(m.GetContainerPath()), Type: "bind", Source: m.GetHostPath(), Options: options}, nil
}

func validMount(field string, m *runtimeapi.Mount) error {
	dest, host := m.GetContainerPath(), m.GetHostPath()
	switch {
	case m.GetImage().GetImage() != "" && host != "":
		return invalid(field, "host_path and image exclude each other")
	case m.GetImage().GetImage() != "":
		return notYet(field+".image", "image volumes")
	case m.GetImageSubPath() != "":
		return invalid(field+".image_sub_path", "is set without an image")
	case len(m.GetUidMappings())+len(m.GetGidMappings()) > 0:
		return notYet(field, "idmapped mounts (uidMappings, gidMappings)")
	case len(m.GetMountOptions()) > 0:
		return notYet(field, "mount_options")
	case !path.IsAbs(dest) || strings.ContainsRune(dest, 0):
		return invalid(field+".container_path", "%q, for host path %q, is not an absolute path", dest, m.GetHostPath())
	case path.Clean(dest) == "/":
		return invalid(field+".container_path", "%q is the root itself", dest)
	case !path.IsAbs(host) || strings.ContainsRune(host, 0):
		return invalid(field+".host_path", "%q (for %s) is not an absolute path", host, dest)
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid(field+".recursive_read_only", "%s: wants readonly too", dest)
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+".recursive_read_only", "%s: wants propagation PRIVATE, is %s", dest, m.GetPropagation())
	}
	return nil
}
