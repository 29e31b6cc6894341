// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxFacts are what a sandbox needs beside the manifest.
type SandboxFacts struct {
	// LogDir is the folder of the containers' logs.
	LogDir string
	// HostDNS is what the host's resolv.conf says; the manifest's dnsConfig is added to it.
	HostDNS *runtimeapi.DNSConfig
	// FirstID is as in ContainerFacts.
	FirstID uint32
}

// Sandbox is the pod as RunPodSandbox wants it.
func (p *Pod) Sandbox(f SandboxFacts) (*runtimeapi.PodSandboxConfig, error) {
	security, err := p.sandboxSecurity(f.FirstID)
	if err != nil {
		return nil, err
	}
	ports, err := p.ports()
	if err != nil {
		return nil, err
	}
	dns, err := p.dns(f.HostDNS)
	if err != nil {
		return nil, err
	}
	labels := p.kubernetesLabels()
	maps.Copy(labels, p.Labels)
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: string(p.UID)},
		LogDirectory: f.LogDir,
		DnsConfig:    dns,
		PortMappings: ports,
		Labels:       labels,
		Annotations:  p.Annotations,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: security},
	}
	if !p.Spec.HostNetwork {
		config.Hostname = p.Hostname()
	}
	if sc := p.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		config.Linux.Sysctls = map[string]string{}
		for _, s := range sc.Sysctls {
			config.Linux.Sysctls[s.Name] = s.Value
		}
	}
	return config, nil
}

// Handler is the runtime handler that the pod asks for; without a cluster, a runtime class is its handler.
func (p *Pod) Handler() string {
	if p.Spec.RuntimeClassName == nil {
		return ""
	}
	return *p.Spec.RuntimeClassName
}

func (p *Pod) namespaces(firstID uint32) *runtimeapi.NamespaceOption {
	mode := func(host bool) runtimeapi.NamespaceMode {
		if host {
			return runtimeapi.NamespaceMode_NODE
		}
		return runtimeapi.NamespaceMode_POD
	}
	o := &runtimeapi.NamespaceOption{Network: mode(p.Spec.HostNetwork), Ipc: mode(p.Spec.HostIPC), Pid: runtimeapi.NamespaceMode_CONTAINER,
		UsernsOptions: p.userNamespace(firstID)}
	switch {
	case p.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace:
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

func (p *Pod) sandboxSecurity(firstID uint32) (*runtimeapi.LinuxSandboxSecurityContext, error) {
	out := &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: p.namespaces(firstID),
		Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}}
	for _, c := range p.all() {
		out.Privileged = out.Privileged || privileged(c)
	}
	sc := p.Spec.SecurityContext
	if sc == nil {
		return out, nil
	}
	out.SelinuxOptions = selinux(sc.SELinuxOptions)
	out.SupplementalGroups = p.groups()
	if err := p.groupsPolicy(&out.SupplementalGroupsPolicy); err != nil {
		return nil, err
	}
	return out, nil
}

// groups are the supplemental groups and that of the volumes.
func (p *Pod) groups() []int64 {
	sc := p.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	groups := slices.Clone(sc.SupplementalGroups)
	if sc.FSGroup != nil {
		groups = append(groups, *sc.FSGroup)
	}
	return groups
}

func (p *Pod) groupsPolicy(to *runtimeapi.SupplementalGroupsPolicy) error {
	sc := p.Spec.SecurityContext
	if sc == nil || sc.SupplementalGroupsPolicy == nil {
		return nil
	}
	switch *sc.SupplementalGroupsPolicy {
	case corev1.SupplementalGroupsPolicyMerge:
		*to = runtimeapi.SupplementalGroupsPolicy_Merge
	case corev1.SupplementalGroupsPolicyStrict:
		*to = runtimeapi.SupplementalGroupsPolicy_Strict
	default:
		return fmt.Errorf("spec.securityContext.supplementalGroupsPolicy: %q is not one of Merge, Strict", *sc.SupplementalGroupsPolicy)
	}
	return nil
}

// ports are those of all containers; without a hostPort one is only documentation.
func (p *Pod) ports() ([]*runtimeapi.PortMapping, error) {
	var all []*runtimeapi.PortMapping
	taken := map[string]string{}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		for j, port := range c.Ports {
			field := fmt.Sprintf("%s.ports[%d]", p.Field(c), j)
			protocol := port.Protocol
			if protocol == "" {
				protocol = corev1.ProtocolTCP
			}
			number, known := runtimeapi.Protocol_value[string(protocol)]
			switch {
			case !known:
				return nil, fmt.Errorf("%s.protocol: %q is not one of TCP, UDP, SCTP", field, protocol)
			case port.ContainerPort < 1 || port.ContainerPort > 65535:
				return nil, fmt.Errorf("%s.containerPort: %d is not between 1 and 65535", field, port.ContainerPort)
			case port.HostPort < 0 || port.HostPort > 65535:
				return nil, fmt.Errorf("%s.hostPort: %d is not between 1 and 65535", field, port.HostPort)
			case port.HostIP != "" && net.ParseIP(port.HostIP) == nil:
				return nil, fmt.Errorf("%s.hostIP: %q is no IP address", field, port.HostIP)
			case p.Spec.HostNetwork && port.HostPort != 0 && port.HostPort != port.ContainerPort:
				return nil, fmt.Errorf("%s.hostPort: must be the containerPort in a pod with the host's network", field)
			}
			if port.HostPort != 0 {
				key := fmt.Sprintf("%s %s:%d", protocol, port.HostIP, port.HostPort)
				if other, ok := taken[key]; ok {
					return nil, fmt.Errorf("%s.hostPort: %d is %s's too", field, port.HostPort, other)
				}
				taken[key] = field
			}
			if p.Spec.HostNetwork { // the containers have the host's ports as they are
				continue
			}
			all = append(all, &runtimeapi.PortMapping{Protocol: runtimeapi.Protocol(number), ContainerPort: port.ContainerPort,
				HostPort: port.HostPort, HostIp: port.HostIP})
		}
	}
	return all, nil
}

// dns is nil where the pod gets the host's resolv.conf as it is: there is no cluster with a DNS of its own.
func (p *Pod) dns(host *runtimeapi.DNSConfig) (*runtimeapi.DNSConfig, error) {
	out := &runtimeapi.DNSConfig{}
	switch p.Spec.DNSPolicy {
	case "", corev1.DNSDefault, corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet:
		if p.Spec.DNSConfig == nil {
			return nil, nil
		}
		out.Servers, out.Searches, out.Options = slices.Clone(host.GetServers()), slices.Clone(host.GetSearches()), slices.Clone(host.GetOptions())
	case corev1.DNSNone:
		if p.Spec.DNSConfig == nil || len(p.Spec.DNSConfig.Nameservers) == 0 {
			return nil, fmt.Errorf("spec.dnsConfig.nameservers: dnsPolicy None wants at least one")
		}
	default:
		return nil, fmt.Errorf("spec.dnsPolicy: %q is not one of Default, ClusterFirst, ClusterFirstWithHostNet, None", p.Spec.DNSPolicy)
	}
	out.Servers = append(out.Servers, p.Spec.DNSConfig.Nameservers...)
	out.Searches = append(out.Searches, p.Spec.DNSConfig.Searches...)
	for _, o := range p.Spec.DNSConfig.Options {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		out.Options = slices.DeleteFunc(out.Options, func(old string) bool {
			name, _, _ := strings.Cut(old, ":")
			return name == o.Name // the manifest's wins
		})
		out.Options = append(out.Options, text)
	}
	return out, nil
}

// HostsFile is the pod's /etc/hosts, which the CRI leaves to its client.
func (p *Pod) HostsFile(podIPs []string) string {
	var b strings.Builder
	b.WriteString("# made by berth run\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	for _, ip := range podIPs {
		fmt.Fprintf(&b, "%s\t%s\n", ip, p.Hostname())
	}
	for _, a := range p.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, " "))
	}
	return b.String()
}
