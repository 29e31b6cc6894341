// SPDX-License-Identifier: Apache-2.0

package network

import "encoding/json"

// DefaultConflist is a CNI configuration for one node without a network provider: a bridge that masquerades, addresses
// from the subnets (IPv4, IPv6 or both; empty leaves a family out), and host ports.
func DefaultConflist(name, bridge, subnet4, subnet6 string) []byte {
	return conflist{Name: name, Bridge: bridge, Subnets: []string{subnet4, subnet6}}.encode()
}

// conflist is what the default configuration is made from. The empty values of the last three are the plugins' own choice.
type conflist struct {
	Name, Bridge, Version string
	Subnets               []string
	DataDir, Backend      string
	Extra                 []map[string]any // plugins after the others
}

func (c conflist) encode() []byte {
	var ranges [][]map[string]string
	var routes []map[string]string
	for i, subnet := range c.Subnets {
		if subnet == "" {
			continue
		}
		ranges = append(ranges, []map[string]string{{"subnet": subnet}})
		routes = append(routes, map[string]string{"dst": []string{"0.0.0.0/0", "::/0"}[i]})
	}
	ipam := map[string]any{"type": "host-local", "ranges": ranges, "routes": routes}
	bridge := map[string]any{"type": "bridge", "bridge": c.Bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam}
	portmap := map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}}
	if c.DataDir != "" {
		ipam["dataDir"] = c.DataDir
	}
	if c.Backend != "" {
		bridge["ipMasqBackend"], portmap["backend"] = c.Backend, c.Backend
	}
	if c.Version == "" {
		c.Version = "1.0.0" // what plugins since 2022 know; newer ones add nothing that these four use
	}
	data, err := json.MarshalIndent(map[string]any{"cniVersion": c.Version, "name": c.Name,
		"plugins": append([]map[string]any{bridge, portmap}, c.Extra...)}, "", "  ")
	if err != nil { // maps of strings and booleans always encode
		panic(err)
	}
	return append(data, '\n')
}
