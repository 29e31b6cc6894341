// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Attachment is a sandbox as the network sees it. Detach needs no more than ID and, where it still exists, NetnsPath.
type Attachment struct {
	ID, Name, Namespace, UID string
	// NetnsPath is where the network namespace is pinned. Detach tells by itself whether it still is.
	NetnsPath    string
	PortMappings []PortMapping
	// Bandwidth is taken from the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth when it is zero.
	Bandwidth    Bandwidth
	DNS          DNS
	CgroupParent string
	Annotations  map[string]string
	// OwnStack: the pod's runtime has a network stack of its own, which takes the addresses off the pod's interfaces for itself. Detach gives them
	// back first: plugins such as bridge tell by them which rules they have made.
	OwnStack bool
}

// PortMapping leads a port of the node to the pod. HostPort 0 asks for nothing. Protocol is TCP, UDP or SCTP in
// any case; empty means TCP.
type PortMapping struct {
	HostPort, ContainerPort int32
	Protocol                string
	HostIP                  string
}

// Bandwidth is in bits per second, bursts in bits; 0 is no limit.
type Bandwidth struct{ IngressRate, IngressBurst, EgressRate, EgressBurst uint64 }

// DNS is what the pod resolves names with.
type DNS struct{ Servers, Searches, Options []string }

func (a Attachment) validate() error {
	if err := utils.ValidateContainerID(a.ID); err != nil {
		return fmt.Errorf("%w: sandbox ID %q: %w", ErrInvalid, a.ID, err)
	}
	if len(a.ID) > 128 || strings.Contains(a.ID, "-") { // it becomes part of a file name that dashes divide
		return fmt.Errorf("%w: sandbox ID %.64q of %d bytes is too long or has a dash", ErrInvalid, a.ID, len(a.ID))
	}
	for name, v := range map[string]string{"name": a.Name, "namespace": a.Namespace, "UID": a.UID} {
		if strings.ContainsAny(v, ";=\n\x00") { // these part one CNI argument from the next
			return fmt.Errorf("%w: the pod's %s %q has a character that CNI arguments cannot carry", ErrInvalid, name, v)
		}
	}
	return nil
}

func (a Attachment) cniArgs() [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", a.Namespace},
		{"K8S_POD_NAME", a.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", a.ID},
		{"K8S_POD_UID", a.UID},
	}
}

// capabilities are handed to those plugins of the chain that declare them, under the names of the CNI conventions.
func (a Attachment) capabilities() (map[string]json.RawMessage, error) {
	offered := map[string]any{}
	ports, err := portMappings(a.PortMappings)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		offered["portMappings"] = ports
	}
	limits := a.Bandwidth
	if limits == (Bandwidth{}) {
		if limits, err = bandwidthOf(a.Annotations); err != nil {
			return nil, err
		}
	}
	if limits != (Bandwidth{}) {
		offered["bandwidth"] = limits.argument()
	}
	if len(a.DNS.Servers)+len(a.DNS.Searches)+len(a.DNS.Options) > 0 {
		offered["dns"] = map[string][]string{"servers": a.DNS.Servers, "searches": a.DNS.Searches, "options": a.DNS.Options}
	}
	if a.CgroupParent != "" {
		offered["cgroupPath"] = a.CgroupParent
	}
	if len(a.Annotations) > 0 {
		offered["io.kubernetes.cri.pod-annotations"] = a.Annotations
	}
	raw := make(map[string]json.RawMessage, len(offered))
	for name, v := range offered {
		if raw[name], err = json.Marshal(v); err != nil {
			return nil, fmt.Errorf("encode CNI capability %s: %w", name, err)
		}
	}
	return raw, nil
}

type portArgument struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func portMappings(all []PortMapping) ([]portArgument, error) {
	var args []portArgument
	for _, p := range all {
		if p.HostPort == 0 {
			continue
		}
		proto := strings.ToLower(p.Protocol)
		switch proto {
		case "":
			proto = "tcp"
		case "tcp", "udp", "sctp":
		default:
			return nil, fmt.Errorf("%w: port mapping %d: protocol %q is none of TCP, UDP, SCTP", ErrInvalid, p.HostPort, p.Protocol)
		}
		if p.HostPort < 0 || p.HostPort > math.MaxUint16 {
			return nil, fmt.Errorf("%w: host port %d is not in 0 to 65535", ErrInvalid, p.HostPort)
		}
		if p.ContainerPort < 1 || p.ContainerPort > math.MaxUint16 {
			return nil, fmt.Errorf("%w: container port %d of host port %d is not in 1 to 65535", ErrInvalid, p.ContainerPort, p.HostPort)
		}
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				return nil, fmt.Errorf("%w: host IP of host port %d: %w", ErrInvalid, p.HostPort, err)
			}
		}
		args = append(args, portArgument{p.HostPort, p.ContainerPort, proto, p.HostIP})
	}
	return args, nil
}

func (b Bandwidth) argument() map[string]uint64 {
	arg := map[string]uint64{}
	add := func(direction string, rate, burst uint64) {
		if rate == 0 {
			return
		}
		if burst == 0 { // the plugin takes no rate without a burst
			burst = math.MaxUint32
		}
		arg[direction+"Rate"], arg[direction+"Burst"] = rate, burst
	}
	add("ingress", b.IngressRate, b.IngressBurst)
	add("egress", b.EgressRate, b.EgressBurst)
	return arg
}

// bandwidthOf reads the annotations that Kubernetes documents for pods; its limits are 1k to 1P.
func bandwidthOf(annotations map[string]string) (Bandwidth, error) {
	read := func(name string) (uint64, error) {
		text, ok := annotations["kubernetes.io/"+name]
		if !ok {
			return 0, nil
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return 0, fmt.Errorf("%w: annotation kubernetes.io/%s %.64q: %w", ErrInvalid, name, text, err)
		}
		if v := q.Value(); v < 1e3 || v > 1e15 {
			return 0, fmt.Errorf("%w: annotation kubernetes.io/%s %.64q is not in 1k to 1P", ErrInvalid, name, text)
		}
		return uint64(q.Value()), nil
	}
	var b Bandwidth
	var err error
	if b.IngressRate, err = read("ingress-bandwidth"); err != nil {
		return b, err
	}
	b.EgressRate, err = read("egress-bandwidth")
	return b, err
}
