// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/berth-run/berth/internal/linux/netns"
)

// chain is a network's plugins together with what they are told of one attachment.
type chain struct {
	list *libcni.NetworkConfigList
	dirs []string
	e    entry
}

// call puts together one run as the specification wants it: the plugin's own configuration with the list's name and
// version, what it declared to be capable of, and the previous result.
func (c chain) call(verb string, p *libcni.PluginConfig, prev types.Result) (call, error) {
	inject := map[string]any{"name": c.list.Name, "cniVersion": c.list.CNIVersion}
	if prev != nil {
		inject["prevResult"] = prev
	}
	wanted := map[string]any{}
	for capability, declared := range p.Network.Capabilities {
		if arg, ok := c.e.Capabilities[capability]; ok && declared {
			wanted[capability] = arg
		}
	}
	if len(wanted) > 0 {
		inject["runtimeConfig"] = wanted
	}
	conf, err := libcni.InjectConf(p, inject)
	if err != nil {
		return call{}, fmt.Errorf("network %s: configuration of plugin %s: %w", c.list.Name, p.Network.Type, err)
	}
	return call{plugin: p.Network.Type, conf: conf.Bytes, args: c.args(verb)}, nil
}

func (c chain) args(verb string) invoke.Args {
	return invoke.Args{Command: verb, ContainerID: c.e.ContainerID, NetNS: c.e.NetNS, IfName: c.e.IfName, PluginArgs: c.e.CNIArgs,
		Path: strings.Join(c.dirs, ":")}
}

// previous is the result for CHECK and DEL, nil where there is none: versions before 0.4.0 knew no such thing, and a
// half-done ADD may have come to none.
func (c chain) previous() (types.Result, error) {
	if len(c.e.Result) == 0 || !atLeast(c.list, "0.4.0") {
		return nil, nil
	}
	r, err := create.CreateFromBytes(c.e.Result)
	if err == nil {
		r, err = r.GetAsVersion(c.list.CNIVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("network %s: remembered result of %s: %w", c.list.Name, c.e.ContainerID, err)
	}
	return r, nil
}

// giveBack gives the pod's interfaces the addresses that the plugins have given them.
func (c chain) giveBack() error {
	prev, err := c.previous()
	if prev == nil || err != nil {
		return err
	}
	r, err := toResult(c.list.Name, prev)
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range r.Interfaces {
		if i.Sandbox != "" && len(i.IPs) > 0 {
			errs = append(errs, netns.RestoreAddresses(c.e.NetNS, i.Name, i.IPs))
		}
	}
	return errors.Join(errs...)
}

func (e *entry) keep(r types.Result) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("remember result of network %s: %w", e.NetworkName, err)
	}
	e.Result = raw
	return nil
}
