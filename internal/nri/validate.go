// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	annotations "github.com/containerd/nri/pkg/plugin"
	validator "github.com/containerd/nri/plugins/default-validator"
)

// Rejectable are the kinds of adjustment that Config.Reject can forbid.
var Rejectable = map[string]func(*validator.DefaultValidatorConfig){
	"hooks":                   func(c *validator.DefaultValidatorConfig) { c.RejectOCIHookAdjustment = true },
	"seccomp_runtime_default": func(c *validator.DefaultValidatorConfig) { c.RejectRuntimeDefaultSeccompAdjustment = true },
	"seccomp_unconfined":      func(c *validator.DefaultValidatorConfig) { c.RejectUnconfinedSeccompAdjustment = true },
	"seccomp_localhost":       func(c *validator.DefaultValidatorConfig) { c.RejectCustomSeccompAdjustment = true },
	"namespaces":              func(c *validator.DefaultValidatorConfig) { c.RejectNamespaceAdjustment = true },
	"sysctls":                 func(c *validator.DefaultValidatorConfig) { c.RejectSysctlAdjustment = true },
}

// rulesOf are the default validator's rules for a configuration.
func rulesOf(cfg Config) (*validator.DefaultValidatorConfig, error) {
	rules := &validator.DefaultValidatorConfig{Enable: true, TolerateMissingAnnotation: cfg.Tolerate}
	for _, what := range cfg.Reject {
		forbid := Rejectable[what]
		if forbid == nil {
			return nil, fmt.Errorf("nri: reject: %q is not known", what)
		}
		forbid(rules)
	}
	return rules, nil
}

// validate is the built-in validator, called with the sum of all adjustments of a container: upstream's default validator with two gaps closed. There, a plugin that was
// called and did not answer counts as present, and a sysctl that is removed as none that is adjusted.
func (n *NRI) validate(ctx context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	answered, removed := n.calls.present(r.GetPlugins())
	if n.rules.RejectSysctlAdjustment {
		if by := slices.Sorted(maps.Keys(removed)); len(by) > 0 {
			return fmt.Errorf("%w: attempted restricted removal of sysctls by plugin(s) %s", validator.ErrValidation, strings.Join(by, ", "))
		}
	}
	// Other validators are shown the same request at the same time.
	seen := &api.ValidateContainerAdjustmentRequest{Pod: r.GetPod(), Container: r.GetContainer(), Adjust: r.GetAdjust(), Update: r.GetUpdate(),
		Owners: r.GetOwners(), Plugins: answered}
	return validator.NewDefaultValidator(n.rules).ValidateContainerAdjustment(ctx, seen)
}

// Demanded tells whether a pod itself asks for plugins: then its containers are created with none at all only where that is refused, too.
func Demanded(p Pod, container string) bool {
	_, ok := annotations.GetEffectiveAnnotation(&api.PodSandbox{Annotations: p.Annotations}, annotations.RequiredPluginsAnnotation, container)
	return ok
}
