// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"path"
	"strings"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is the kernel's limit (HOST_NAME_MAX).
const maxHostname = 64

// ValidateSandbox checks what can be checked without touching the host, before any side effect.
func ValidateSandbox(c *runtimeapi.PodSandboxConfig) error {
	if c == nil {
		return invalid("config", "is empty")
	}
	if err := validPodName(c.GetMetadata()); err != nil {
		return err
	}
	switch {
	case len(c.GetHostname()) > maxHostname:
		return invalid("hostname", "%d characters, the kernel takes %d", len(c.GetHostname()), maxHostname)
	case strings.ContainsAny(c.GetHostname(), "/ \t"):
		return invalid("hostname", "%q has a character that no host name has", c.GetHostname())
	case c.GetLogDirectory() != "" && !path.IsAbs(c.GetLogDirectory()):
		return invalid("log_directory", "%q is not absolute", c.GetLogDirectory())
	case c.GetWindows() != nil:
		return invalid("windows", "this is a Linux node")
	}
	if err := oneLine("hostname", c.GetHostname()); err != nil {
		return err
	}
	if err := oneLine("log_directory", c.GetLogDirectory()); err != nil {
		return err
	}
	if err := validDNS(c.GetDnsConfig()); err != nil {
		return err
	}
	if err := validPorts(c.GetPortMappings()); err != nil {
		return err
	}
	return validLinuxSandbox(c.GetLinux())
}

// validPodName: the names go into CNI arguments, host names and logs.
func validPodName(md *runtimeapi.PodSandboxMetadata) error {
	if md == nil {
		return invalid("metadata", "is empty")
	}
	for _, f := range []struct{ field, value string }{{"metadata.name", md.GetName()}, {"metadata.namespace", md.GetNamespace()}, {"metadata.uid", md.GetUid()}} {
		if f.value == "" {
			return invalid(f.field, "is empty")
		}
		if err := oneLine(f.field, f.value); err != nil {
			return err
		}
	}
	return nil
}

// oneLine: what becomes part of a file, a log line or a system call must not end it.
func oneLine(field, value string) error {
	if strings.ContainsFunc(value, unicode.IsControl) {
		return invalid(field, "%q has a control character", value)
	}
	return nil
}

// validDNS keeps a value from adding lines of its own to resolv.conf.
func validDNS(dns *runtimeapi.DNSConfig) error {
	for _, l := range []struct {
		field  string
		values []string
	}{{"servers", dns.GetServers()}, {"searches", dns.GetSearches()}, {"options", dns.GetOptions()}} {
		for i, v := range l.values {
			if v == "" || strings.ContainsFunc(v, unicode.IsSpace) || strings.ContainsFunc(v, unicode.IsControl) {
				return invalid(fmt.Sprintf("dns_config.%s[%d]", l.field, i), "%q is not one word", v)
			}
		}
	}
	return nil
}

func validPorts(ports []*runtimeapi.PortMapping) error {
	for i, p := range ports {
		for _, port := range []int32{p.GetContainerPort(), p.GetHostPort()} {
			if port < 0 || port > 65535 {
				return invalid(fmt.Sprintf("port_mappings[%d]", i), "%d is no port: they go from 0 to 65535", port)
			}
		}
		if _, known := runtimeapi.Protocol_name[int32(p.GetProtocol())]; !known {
			return invalid(fmt.Sprintf("port_mappings[%d].protocol", i), "%d is unknown", p.GetProtocol())
		}
	}
	return nil
}

func validLinuxSandbox(l *runtimeapi.LinuxPodSandboxConfig) error {
	const field = "linux.security_context"
	sc := l.GetSecurityContext()
	if err := validNamespaces(field+".namespace_options", sc.GetNamespaceOptions()); err != nil {
		return err
	}
	if sc.GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_TARGET {
		return invalid(field+".namespace_options.pid", "TARGET is for containers")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid(field+".run_as_group", "wants run_as_user too")
	}
	if err := validSELinux(field, sc.GetSelinuxOptions()); err != nil {
		return err
	}
	if sc.GetSeccomp() != nil {
		if err := validProfile(field+".seccomp", sc.GetSeccomp()); err != nil {
			return err
		}
	}
	if err := validResources("linux.overhead", l.GetOverhead()); err != nil {
		return err
	}
	return validResources("linux.resources", l.GetResources())
}

func validNamespaces(field string, o *runtimeapi.NamespaceOption) error {
	for _, n := range []struct {
		name string
		mode runtimeapi.NamespaceMode
	}{{"network", o.GetNetwork()}, {"pid", o.GetPid()}, {"ipc", o.GetIpc()}} {
		if _, known := runtimeapi.NamespaceMode_name[int32(n.mode)]; !known {
			return invalid(field+"."+n.name, "mode %d is unknown", n.mode)
		}
		if n.name != "pid" && n.mode != runtimeapi.NamespaceMode_POD && n.mode != runtimeapi.NamespaceMode_NODE {
			return invalid(field+"."+n.name, "is %s, can be POD or NODE", n.mode)
		}
	}
	return validUserns(field, o)
}
