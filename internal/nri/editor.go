// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// editor makes the single changes that the library breaks an adjustment into. Preconditions: withParts was called.
type editor struct{ s *specs.Spec }

func remove[T any](list []T, drop func(T) bool) []T { return slices.DeleteFunc(list, drop) }

// put replaces the element that is the same, or adds it.
func put[T any](list []T, v T, same func(T) bool) []T {
	if i := slices.IndexFunc(list, same); i >= 0 {
		list[i] = v
		return list
	}
	return append(list, v)
}

func set(m *map[string]string, k, v string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[k] = v
}

func (e editor) resources() *specs.LinuxResources { return e.s.Linux.Resources }

// Spec implements generate.UnderlyingGenerator, as all below do.
func (e editor) Spec() *specs.Spec { return e.s }

func (e editor) AddAnnotation(k, v string)  { set(&e.s.Annotations, k, v) }
func (e editor) RemoveAnnotation(k string)  { delete(e.s.Annotations, k) }
func (e editor) AddLinuxSysctl(k, v string) { set(&e.s.Linux.Sysctl, k, v) }
func (e editor) RemoveLinuxSysctl(k string) { delete(e.s.Linux.Sysctl, k) }

func (e editor) AddDevice(d specs.LinuxDevice) {
	e.s.Linux.Devices = put(e.s.Linux.Devices, d, func(o specs.LinuxDevice) bool { return o.Path == d.Path })
}

func (e editor) RemoveDevice(path string) {
	e.s.Linux.Devices = remove(e.s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

var namespaces = []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace,
	specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace}

func (e editor) AddOrReplaceLinuxNamespace(kind, path string) error {
	n := specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: path}
	if !slices.Contains(namespaces, n.Type) {
		return fmt.Errorf("namespace type %q is not known", kind)
	}
	e.s.Linux.Namespaces = put(e.s.Linux.Namespaces, n, func(o specs.LinuxNamespace) bool { return o.Type == n.Type })
	return nil
}

func (e editor) RemoveLinuxNamespace(kind string) error {
	e.s.Linux.Namespaces = remove(e.s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return string(n.Type) == kind })
	return nil
}

// AddPreStartHook adds to the one kind of hook that the OCI has deprecated: plugins still use it.
func (e editor) AddPreStartHook(h specs.Hook)  { e.s.Hooks.Prestart = append(e.s.Hooks.Prestart, h) } //nolint:staticcheck // see above
func (e editor) AddPostStartHook(h specs.Hook) { e.s.Hooks.Poststart = append(e.s.Hooks.Poststart, h) }
func (e editor) AddPostStopHook(h specs.Hook)  { e.s.Hooks.Poststop = append(e.s.Hooks.Poststop, h) }

func (e editor) AddProcessEnv(name, value string) {
	e.s.Process.Env = put(e.s.Process.Env, name+"="+value, func(o string) bool { return strings.HasPrefix(o, name+"=") })
}

func (e editor) ClearProcessEnv()              { e.s.Process.Env = nil }
func (e editor) SetProcessArgs(args []string)  { e.s.Process.Args = args }
func (e editor) SetProcessOOMScoreAdj(adj int) { e.s.Process.OOMScoreAdj = &adj }
func (e editor) SetLinuxCgroupsPath(p string)  { e.s.Linux.CgroupsPath = p }
func (e editor) AddMount(m specs.Mount)        { e.s.Mounts = append(e.s.Mounts, m) }
func (e editor) ClearMounts()                  { e.s.Mounts = nil }
func (e editor) Mounts() []specs.Mount         { return e.s.Mounts }

func (e editor) RemoveMount(dest string) {
	e.s.Mounts = remove(e.s.Mounts, func(m specs.Mount) bool { return m.Destination == dest })
}

func (e editor) SetLinuxRootPropagation(p string) error {
	e.s.Linux.RootfsPropagation = p
	return nil
}

func (e editor) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	e.resources().Devices = append(e.resources().Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (e editor) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	e.resources().HugepageLimits = put(e.resources().HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit},
		func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == size })
}

func (e editor) AddLinuxResourcesUnified(k, v string)     { set(&e.resources().Unified, k, v) }
func (e editor) SetLinuxResourcesCPUCpus(cpus string)     { e.resources().CPU.Cpus = cpus }
func (e editor) SetLinuxResourcesCPUMems(mems string)     { e.resources().CPU.Mems = mems }
func (e editor) SetLinuxResourcesCPUPeriod(period uint64) { e.resources().CPU.Period = &period }
func (e editor) SetLinuxResourcesCPUQuota(quota int64)    { e.resources().CPU.Quota = &quota }
func (e editor) SetLinuxResourcesCPURealtimePeriod(period uint64) {
	e.resources().CPU.RealtimePeriod = &period
}
func (e editor) SetLinuxResourcesCPURealtimeRuntime(runtime int64) {
	e.resources().CPU.RealtimeRuntime = &runtime
}
func (e editor) SetLinuxResourcesCPUShares(shares uint64) { e.resources().CPU.Shares = &shares }
func (e editor) SetLinuxResourcesMemoryLimit(limit int64) { e.resources().Memory.Limit = &limit }
func (e editor) SetLinuxResourcesMemorySwap(swap int64)   { e.resources().Memory.Swap = &swap }
