// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ValidateContainer checks what can be checked without touching the host, before any side effect.
func ValidateContainer(c *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig) error {
	switch {
	case c == nil:
		return invalid("config", "is empty")
	case c.GetMetadata() == nil:
		return invalid("metadata", "is empty")
	case c.GetMetadata().GetName() == "":
		return invalid("metadata.name", "is empty")
	case c.GetImage().GetImage() == "":
		return invalid("image.image", "is empty")
	case c.GetWorkingDir() != "" && !path.IsAbs(c.GetWorkingDir()):
		return invalid("working_dir", "%q is not absolute", c.GetWorkingDir())
	case c.GetWindows() != nil:
		return invalid("windows", "this is a Linux node")
	}
	if err := oneLine("metadata.name", c.GetMetadata().GetName()); err != nil {
		return err
	}
	if err := validLogPath(c.GetLogPath(), sandbox); err != nil {
		return err
	}
	for i, kv := range c.GetEnvs() {
		if err := validEnv(i, kv); err != nil {
			return err
		}
	}
	if _, err := criMounts(c.GetMounts(), nil); err != nil {
		return err
	}
	if err := validDevices(c.GetDevices()); err != nil {
		return err
	}
	if _, err := StopSignal(c, ""); err != nil {
		return err
	}
	return validLinuxContainer(c.GetLinux(), sandbox)
}

// validLogPath: relative to the sandbox's log directory, and not out of it.
func validLogPath(p string, sandbox *runtimeapi.PodSandboxConfig) error {
	switch {
	case p == "":
		return nil
	case path.IsAbs(p):
		return invalid("log_path", "%q is not relative to the sandbox's log_directory", p)
	case path.Clean(p) == "." || path.Clean(p) == ".." || strings.HasPrefix(path.Clean(p), "../"):
		return invalid("log_path", "%q leads out of the sandbox's log_directory", p)
	case sandbox.GetLogDirectory() == "":
		return invalid("log_path", "is set, but the sandbox has no log_directory")
	}
	return oneLine("log_path", p)
}

func validDevices(devices []*runtimeapi.Device) error {
	for i, d := range devices {
		field, dest := fmt.Sprintf("devices[%d]", i), d.GetContainerPath()
		switch {
		case !path.IsAbs(d.GetHostPath()) || strings.ContainsRune(d.GetHostPath(), 0):
			return invalid(field+".host_path", "%q is not an absolute path", d.GetHostPath())
		case !path.IsAbs(dest) || path.Clean(dest) == "/" || strings.ContainsRune(dest, 0):
			return invalid(field+".container_path", "%q is not the absolute path of a device", dest)
		case d.GetPermissions() == "" || strings.Trim(d.GetPermissions(), "rwm") != "":
			return invalid(field+".permissions", "%q is not of r, w and m", d.GetPermissions())
		}
	}
	return nil
}

func validLinuxContainer(l *runtimeapi.LinuxContainerConfig, sandbox *runtimeapi.PodSandboxConfig) error {
	if err := validResources("linux.resources", l.GetResources()); err != nil {
		return err
	}
	if err := validSwap("linux.resources", l.GetResources()); err != nil {
		return err
	}
	const field = "linux.security_context"
	sc := l.GetSecurityContext()
	if sc.GetPrivileged() && !sandbox.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid(field+".privileged", "the sandbox is not privileged, so its containers cannot be")
	}
	if err := validUser(field, sc); err != nil {
		return err
	}
	if err := validConfinement(field, sc); err != nil {
		return err
	}
	if err := validSELinux(field, sc.GetSelinuxOptions()); err != nil {
		return err
	}
	for _, list := range []struct {
		name  string
		paths []string
	}{{"masked_paths", sc.GetMaskedPaths()}, {"readonly_paths", sc.GetReadonlyPaths()}} {
		for i, p := range list.paths {
			if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
				return invalid(fmt.Sprintf("%s.%s[%d]", field, list.name, i), "%q is not an absolute path", p)
			}
		}
	}
	return validSharing(field+".namespace_options", sc.GetNamespaceOptions(), sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions())
}

// maxID is the highest user and group ID: above it they turn negative, or into root, somewhere on the way (CVE-2024-40635).
const maxID = 1<<31 - 1

func validUser(field string, sc *runtimeapi.LinuxContainerSecurityContext) error {
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		return invalid(field, "run_as_user and run_as_username exclude each other")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return invalid(field+".run_as_group", "wants run_as_user or run_as_username too")
	}
	if v := sc.GetRunAsUser().GetValue(); v < 0 || v > maxID {
		return invalid(field+".run_as_user", "%d is no user ID", v)
	}
	if v := sc.GetRunAsGroup().GetValue(); v < 0 || v > maxID {
		return invalid(field+".run_as_group", "%d is no group ID", v)
	}
	for i, v := range sc.GetSupplementalGroups() {
		if v < 0 || v > maxID {
			return invalid(fmt.Sprintf("%s.supplemental_groups[%d]", field, i), "%d is no group ID", v)
		}
	}
	if _, known := runtimeapi.SupplementalGroupsPolicy_name[int32(sc.GetSupplementalGroupsPolicy())]; !known {
		return invalid(field+".supplemental_groups_policy", "%d is unknown", sc.GetSupplementalGroupsPolicy())
	}
	return nil
}

func validConfinement(field string, sc *runtimeapi.LinuxContainerSecurityContext) error {
	if _, err := AskedAppArmor(sc); err != nil {
		return err
	}
	if sc.GetSeccomp() != nil {
		return validProfile(field+".seccomp", sc.GetSeccomp())
	}
	//nolint:staticcheck // deprecated; who sets only this one would run unconfined without being told
	if old := sc.GetSeccompProfilePath(); old != "" && old != "unconfined" {
		return invalid(field+".seccomp_profile_path", "%q: this field is not read any more, set seccomp", old)
	}
	return nil
}

// validSharing: a container is in its pod's network and IPC namespaces. It cannot be in the node's where the pod is not.
func validSharing(field string, o, pod *runtimeapi.NamespaceOption) error {
	const node = runtimeapi.NamespaceMode_NODE
	if err := validNamespaces(field, o); err != nil {
		return err
	}
	switch {
	case o.GetNetwork() == node && pod.GetNetwork() != node:
		return invalid(field+".network", "is NODE, but the sandbox's is %s", pod.GetNetwork())
	case o.GetIpc() == node && pod.GetIpc() != node:
		return invalid(field+".ipc", "is NODE, but the sandbox's is %s", pod.GetIpc())
	case o.GetPid() == runtimeapi.NamespaceMode_TARGET && o.GetTargetId() == "":
		return invalid(field+".target_id", "is empty, pid TARGET wants one")
	case o.GetPid() != runtimeapi.NamespaceMode_TARGET && o.GetTargetId() != "":
		return invalid(field+".target_id", "is set, but pid is %s", o.GetPid())
	}
	return sameUserns(field, o, pod)
}
