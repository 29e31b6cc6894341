// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"github.com/berth-run/berth/internal/nri"
	"github.com/berth-run/berth/internal/pod"
)

// openNRI makes the hooks that pods have, if the configuration wants any.
func (d *daemon) openNRI(specs specMaker) (pod.Hooks, error) {
	c := d.cfg.NRI
	if !c.Enable {
		return nil, nil
	}
	n, err := nri.New(nri.Config{Socket: c.Socket, PluginDir: c.PluginDir, ConfigDir: c.PluginConfigDir, RegistrationTimeout: c.RegistrationTimeout,
		RequestTimeout: c.RequestTimeout, Required: c.RequiredPlugins, Exempt: c.RequiredExempt, Tolerate: c.TolerateMissing, Reject: c.Reject, Version: d.flags.Version,
		InjectCDI: specs.cdi.Inject, BlockIO: specs.classes.BlockIO, RDT: specs.classes.RDT}, d.log)
	if err != nil {
		return nil, err
	}
	d.nri = n
	return n, nil
}
