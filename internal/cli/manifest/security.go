// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a container sees of /proc and /sys unless it is privileged or asks for more: the list that the kubelet sends.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func privileged(c *corev1.Container) bool {
	return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
}

// security is the container's security context over the pod's.
func (p *Pod) security(c *corev1.Container, f ContainerFacts) (*runtimeapi.LinuxContainerSecurityContext, error) {
	pod, own := p.Spec.SecurityContext, c.SecurityContext
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	out := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:         privileged(c),
		NamespaceOptions:   p.namespaces(f.FirstID),
		ReadonlyRootfs:     own.ReadOnlyRootFilesystem != nil && *own.ReadOnlyRootFilesystem,
		NoNewPrivs:         own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation,
		SupplementalGroups: p.groups(),
		SelinuxOptions:     selinux(or(own.SELinuxOptions, pod.SELinuxOptions)),
	}
	if err := p.groupsPolicy(&out.SupplementalGroupsPolicy); err != nil {
		return nil, err
	}
	if !out.Privileged && (own.ProcMount == nil || *own.ProcMount == corev1.DefaultProcMount) {
		out.MaskedPaths, out.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	if caps := own.Capabilities; caps != nil {
		out.Capabilities = &runtimeapi.Capability{AddCapabilities: names(caps.Add), DropCapabilities: names(caps.Drop)}
	}
	if out.NoNewPrivs && out.Privileged {
		return nil, errors.New("securityContext.allowPrivilegeEscalation: false cannot be combined with privileged")
	}
	var err error
	if out.Seccomp, err = seccomp(or(own.SeccompProfile, pod.SeccompProfile), out.Privileged); err != nil {
		return nil, err
	}
	if out.Apparmor, err = appArmor(or(own.AppArmorProfile, pod.AppArmorProfile)); err != nil {
		return nil, err
	}
	return out, p.user(out, pod, own, f)
}

func or[T any](own, pod *T) *T {
	if own != nil {
		return own
	}
	return pod
}

func names(caps []corev1.Capability) []string {
	var out []string
	for _, c := range caps {
		out = append(out, string(c))
	}
	return out
}

// user says who the container runs as: the manifest's user, else the image's, else root.
func (p *Pod) user(out *runtimeapi.LinuxContainerSecurityContext, pod *corev1.PodSecurityContext, own *corev1.SecurityContext, f ContainerFacts) error {
	uid, gid, nonRoot := or(own.RunAsUser, pod.RunAsUser), or(own.RunAsGroup, pod.RunAsGroup), or(own.RunAsNonRoot, pod.RunAsNonRoot)
	for name, id := range map[string]*int64{"runAsUser": uid, "runAsGroup": gid} {
		if id != nil && (*id < 0 || *id > 1<<31-1) {
			return fmt.Errorf("securityContext.%s: %d is not between 0 and 2147483647", name, *id)
		}
	}
	if gid != nil {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *gid}
	}
	imageUID := f.ImageUID
	if n, err := strconv.ParseInt(f.ImageUser, 10, 64); err == nil && imageUID == nil {
		imageUID = &n
	}
	switch {
	case uid != nil:
		out.RunAsUser = &runtimeapi.Int64Value{Value: *uid}
	case imageUID != nil:
		uid = imageUID
		out.RunAsUser = &runtimeapi.Int64Value{Value: *imageUID}
	case f.ImageUser != "":
		out.RunAsUsername = f.ImageUser
	default:
		uid = new(int64)
		out.RunAsUser = &runtimeapi.Int64Value{}
	}
	if nonRoot == nil || !*nonRoot || f.dry && or(own.RunAsUser, pod.RunAsUser) == nil {
		return nil
	}
	switch {
	case uid == nil:
		return fmt.Errorf("securityContext.runAsNonRoot: the image's user %q is a name, so it may be root: set runAsUser", f.ImageUser)
	case *uid == 0:
		return errors.New("securityContext.runAsNonRoot: the container would run as root")
	}
	return nil
}

// seccomp is the runtime's own profile unless the manifest says otherwise: a pod that people run by hand is confined.
func seccomp(p *corev1.SeccompProfile, privileged bool) (*runtimeapi.SecurityProfile, error) {
	switch {
	case privileged || p != nil && p.Type == corev1.SeccompProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case p == nil || p.Type == corev1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	}
	return nil, fmt.Errorf("securityContext.seccompProfile.type: %q is not supported by berth run: RuntimeDefault and Unconfined are", p.Type)
}

func appArmor(p *corev1.AppArmorProfile) (*runtimeapi.SecurityProfile, error) {
	if p == nil {
		return nil, nil
	}
	switch p.Type {
	case corev1.AppArmorProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case corev1.AppArmorProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case corev1.AppArmorProfileTypeLocalhost:
		if p.LocalhostProfile != nil {
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}, nil
		}
	}
	return nil, fmt.Errorf("securityContext.appArmorProfile: type %q without a profile, or unknown", p.Type)
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}
