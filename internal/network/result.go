// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Result is what a pod got.
type Result struct {
	// IPs are those of eth0; the first is the pod's primary one.
	IPs []netip.Addr `json:"ips"`
	// Interfaces are all that the plugins reported, those on the host too.
	Interfaces []Interface `json:"interfaces,omitempty"`
	// DNS is what the network wants the pod to use; usually empty.
	DNS DNS `json:"dns"`
	// Network is the name of the configuration.
	Network string `json:"network"`
}

// Interface is one end of the pod's link. Sandbox is empty for one on the host.
type Interface struct {
	Name    string         `json:"name"`
	MAC     string         `json:"mac,omitempty"`
	Sandbox string         `json:"sandbox,omitempty"`
	IPs     []netip.Prefix `json:"ips,omitempty"`
}

func toResult(network string, from types.Result) (Result, error) {
	r := Result{Network: network}
	if from == nil {
		return r, fmt.Errorf("network %s: its plugins reported nothing", network)
	}
	c, err := current.GetResult(from)
	if err != nil {
		return r, fmt.Errorf("network %s: read the plugins' result: %w", network, err)
	}
	for _, i := range c.Interfaces {
		if i != nil {
			r.Interfaces = append(r.Interfaces, Interface{Name: i.Name, MAC: i.Mac, Sandbox: i.Sandbox})
		} else {
			r.Interfaces = append(r.Interfaces, Interface{}) // keeps the numbers right
		}
	}
	for _, ip := range c.IPs {
		if ip == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return r, fmt.Errorf("network %s: the plugins reported the address %q", network, ip.Address.String())
		}
		addr = addr.Unmap()
		if ip.Interface == nil { // old plugins do not say which
			r.IPs = append(r.IPs, addr)
			continue
		}
		n := *ip.Interface
		if n < 0 || n >= len(r.Interfaces) {
			return r, fmt.Errorf("network %s: the plugins gave %s to interface number %d of %d", network, addr, n, len(r.Interfaces))
		}
		bits, _ := ip.Address.Mask.Size()
		r.Interfaces[n].IPs = append(r.Interfaces[n].IPs, netip.PrefixFrom(addr, bits))
		if r.Interfaces[n].Name == ifName {
			r.IPs = append(r.IPs, addr)
		}
	}
	r.DNS = DNS{Servers: c.DNS.Nameservers, Searches: c.DNS.Search, Options: c.DNS.Options}
	if len(r.IPs) == 0 {
		return r, fmt.Errorf("network %s: the plugins gave %s no IP address", network, ifName)
	}
	return r, nil
}
