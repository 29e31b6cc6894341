// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// IDRange maps the IDs from 0 on of a pod's user namespace to Size IDs of the host, from Host on.
type IDRange struct{ Host, Size uint32 }

// UserNamespace is how a pod's user namespace maps users and groups.
type UserNamespace struct{ UIDs, GIDs IDRange }

// UserNamespaceOf is the user namespace that a valid sandbox configuration asks for; nil: the host's.
// A kubelet that knows none leaves userns_options out, so that means the host's, too.
func UserNamespaceOf(sandbox *runtimeapi.PodSandboxConfig) *UserNamespace {
	o := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
	u := o.GetUsernsOptions()
	if u == nil || u.GetMode() != runtimeapi.NamespaceMode_POD || len(u.GetUids()) != 1 || len(u.GetGids()) != 1 {
		return nil
	}
	uids, gids := u.GetUids()[0], u.GetGids()[0]
	return &UserNamespace{UIDs: IDRange{uids.GetHostId(), uids.GetLength()}, GIDs: IDRange{gids.GetHostId(), gids.GetLength()}}
}

// validUserns checks userns_options by itself and with the pod's other namespaces (KEP-127). The kernel gives a namespace's root no say over
// namespaces that it does not own: with the host's processes or IPC objects /proc or /dev/mqueue could not even be mounted. The host's
// network is different: only /sys wants another mount.
func validUserns(field string, o *runtimeapi.NamespaceOption) error {
	u := o.GetUsernsOptions()
	field += ".userns_options"
	switch mode := u.GetMode(); {
	case u == nil:
		return nil
	case mode == runtimeapi.NamespaceMode_NODE && len(u.GetUids())+len(u.GetGids()) > 0:
		return invalid(field, "mode NODE takes no mappings, has %d of UIDs and %d of GIDs", len(u.GetUids()), len(u.GetGids()))
	case mode == runtimeapi.NamespaceMode_NODE:
		return nil
	case mode != runtimeapi.NamespaceMode_POD:
		return invalid(field+".mode", "is %s, can be POD or NODE", mode)
	case o.GetPid() == runtimeapi.NamespaceMode_NODE:
		return invalid(field, "a pod with a user namespace cannot share the host's PID namespace")
	case o.GetIpc() == runtimeapi.NamespaceMode_NODE:
		return invalid(field, "a pod with a user namespace cannot share the host's IPC namespace")
	}
	if err := validMapping(field+".uids", u.GetUids()); err != nil {
		return err
	}
	return validMapping(field+".gids", u.GetGids())
}

// validMapping: one range from 0 on, as the kubelet makes them.
func validMapping(field string, mappings []*runtimeapi.IDMapping) error {
	if len(mappings) != 1 {
		return invalid(field, "there are %d mappings, want one", len(mappings))
	}
	m := mappings[0]
	if m.GetContainerId() != 0 {
		return invalid(field, "begins at ID %d of the container, want 0", m.GetContainerId())
	}
	return validRange(field, m)
}

// validRange: the highest ID, 2^32-1, means "none" to the kernel.
func validRange(field string, m *runtimeapi.IDMapping) error {
	switch size := uint64(m.GetLength()); {
	case size == 0:
		return invalid(field, "is empty: length is 0")
	case uint64(m.GetHostId())+size > math.MaxUint32:
		return invalid(field, "%d IDs from %d of the host on: they end at %d", size, m.GetHostId(), uint32(math.MaxUint32-1))
	case uint64(m.GetContainerId())+size > math.MaxUint32:
		return invalid(field, "%d IDs from %d of the container on: they end at %d", size, m.GetContainerId(), uint32(math.MaxUint32-1))
	}
	return nil
}

// sameUserns: a container is in its pod's user namespace; saying otherwise is a mistake that would change who owns what.
func sameUserns(field string, o, pod *runtimeapi.NamespaceOption) error {
	mine, its := o.GetUsernsOptions(), pod.GetUsernsOptions()
	own := func(u *runtimeapi.UserNamespace) bool { return u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD }
	if own(mine) != own(its) {
		return invalid(field+".userns_options", "%s, but the sandbox has %s", describe(mine), describe(its))
	}
	if own(mine) && (!sameMappings(mine.GetUids(), its.GetUids()) || !sameMappings(mine.GetGids(), its.GetGids())) {
		return invalid(field+".userns_options", "other mappings than the sandbox's")
	}
	return nil
}

func describe(u *runtimeapi.UserNamespace) string {
	if u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD {
		return "a user namespace of the pod"
	}
	return "the host's user namespace"
}

func sameMappings(a, b []*runtimeapi.IDMapping) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].GetHostId() != b[i].GetHostId() || a[i].GetContainerId() != b[i].GetContainerId() || a[i].GetLength() != b[i].GetLength() {
			return false
		}
	}
	return true
}

// checkMapped: whom the process runs as must exist in the pod's user namespace.
func checkMapped(u User, ns *UserNamespace) error {
	if ns == nil {
		return nil
	}
	if u.UID >= ns.UIDs.Size {
		return invalid("user", "UID %d is not in the pod's user namespace, which has %d", u.UID, ns.UIDs.Size)
	}
	for _, gid := range append([]uint32{u.GID}, u.Groups...) {
		if gid >= ns.GIDs.Size {
			return invalid("user", "GID %d is not in the pod's user namespace, which has %d", gid, ns.GIDs.Size)
		}
	}
	return nil
}

// mappings renders those of a CRI mount.
func mappings(all []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range all {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}
