// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultCapabilities are those that containerd and Docker agree on.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

const allCapabilities = "CAP_ALL"

// capabilities never fills the ambient and inheritable sets (CVE-2022-24769 and its kin). As in containerd ALL comes before single
// names, and of a name that is both added and dropped the drop counts.
func capabilities(sc *runtimeapi.LinuxContainerSecurityContext, host Host) (*specs.LinuxCapabilities, error) {
	if sc.GetPrivileged() {
		return capabilitySets(slices.Clone(host.Capabilities)), nil
	}
	asked := sc.GetCapabilities()
	if len(asked.GetAddAmbientCapabilities()) > 0 {
		return nil, invalid("linux.security_context.capabilities.add_ambient_capabilities", "%q: no process gets ambient capabilities; give them to the "+
			"container's user by file capabilities, or run as root with these added", asked.GetAddAmbientCapabilities())
	}
	add, drop := names(asked.GetAddCapabilities()), names(asked.GetDropCapabilities())
	have := map[string]bool{}
	switch {
	case slices.Contains(drop, allCapabilities):
	case slices.Contains(add, allCapabilities):
		set(have, host.Capabilities, true)
	default:
		for _, c := range defaultCapabilities { // a node that lacks one of these runs ordinary containers all the same
			have[c] = slices.Contains(host.Capabilities, c)
		}
	}
	for _, c := range add {
		if c != allCapabilities && !slices.Contains(host.Capabilities, c) {
			return nil, invalid("linux.security_context.capabilities.add_capabilities", "%s is unknown or not this node's to give", c)
		}
	}
	set(have, add, true)
	set(have, drop, false)
	delete(have, allCapabilities)
	maps.DeleteFunc(have, func(_ string, yes bool) bool { return !yes })
	return capabilitySets(slices.Collect(maps.Keys(have))), nil
}

func set(have map[string]bool, names []string, yes bool) {
	for _, c := range names {
		have[c] = yes
	}
}

func capabilitySets(all []string) *specs.LinuxCapabilities {
	slices.Sort(all)
	return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
}

// names brings capability names to the kernel's form: CRI has them with and without the prefix, in any case.
func names(list []string) []string {
	out := make([]string, len(list))
	for i, c := range list {
		out[i] = "CAP_" + strings.TrimPrefix(strings.ToUpper(c), "CAP_")
	}
	return out
}
