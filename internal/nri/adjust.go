// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// adjust renders the plugins' adjustments into a spec.
func (n *NRI) adjust(config []byte, a *api.ContainerAdjustment) (Created, error) {
	if a == nil || len(config) == 0 {
		return Created{Spec: config}, nil
	}
	var s specs.Spec
	if err := json.Unmarshal(config, &s); err != nil {
		return Created{}, fmt.Errorf("nri: read config.json: %w", err)
	}
	withParts(&s)
	mergeRlimits(&s, a)
	if err := generate.SpecGenerator(editor{&s}, n.generateOptions()...).Adjust(a); err != nil {
		return Created{}, fmt.Errorf("%w: adjust config.json: %w", ErrRefused, err)
	}
	raw, err := json.Marshal(&s)
	if err != nil {
		return Created{}, fmt.Errorf("nri: write config.json: %w", err)
	}
	out := Created{Spec: raw}
	if a.GetLinux().GetOomScoreAdj() != nil || adjustsResources(a.GetLinux().GetResources()) {
		out.Resources = specResources(s.Linux.Resources)
		if s.Process.OOMScoreAdj != nil {
			out.Resources.OomScoreAdj = int64(*s.Process.OOMScoreAdj)
		}
	}
	return out, nil
}

func (n *NRI) generateOptions() []generate.GeneratorOption {
	return []generate.GeneratorOption{
		generate.WithCDIDeviceInjector(func(s *specs.Spec, names []string) error {
			if n.cfg.InjectCDI == nil {
				return fmt.Errorf("a plugin asks for CDI devices %q, which this release cannot inject", names)
			}
			return n.cfg.InjectCDI(s, names)
		}),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			if n.cfg.RDT == nil {
				return nil, fmt.Errorf("RDT class %q: classes are not configured", class)
			}
			return n.cfg.RDT(class)
		}),
		generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			if n.cfg.BlockIO == nil {
				return nil, fmt.Errorf("block I/O class %q: classes are not configured", class)
			}
			return n.cfg.BlockIO(class)
		}),
	}
}

// withParts makes the parts of a spec that the library writes into without looking.
func withParts(s *specs.Spec) {
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	if s.Linux.Resources.CPU == nil {
		s.Linux.Resources.CPU = &specs.LinuxCPU{}
	}
	if s.Linux.Resources.Memory == nil {
		s.Linux.Resources.Memory = &specs.LinuxMemory{}
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
}

// mergeRlimits takes away the limits that are about to be set anew: runtimes refuse a limit that is given twice.
func mergeRlimits(s *specs.Spec, a *api.ContainerAdjustment) {
	for _, r := range a.GetRlimits() {
		s.Process.Rlimits = remove(s.Process.Rlimits, func(old specs.POSIXRlimit) bool { return old.Type == r.GetType() })
	}
}

func adjustsResources(r *api.LinuxResources) bool {
	c, m := r.GetCpu(), r.GetMemory()
	return c.GetShares() != nil || c.GetQuota() != nil || c.GetPeriod() != nil || c.GetCpus() != "" || c.GetMems() != "" ||
		m.GetLimit() != nil || m.GetSwap() != nil || len(r.GetHugepageLimits()) > 0 || len(r.GetUnified()) > 0
}
