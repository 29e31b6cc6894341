// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	annotations "github.com/containerd/nri/pkg/plugin"
)

// calls notes which plugins the request in flight has reached and which of them failed. The library itself goes on without a plugin that
// does not answer; its metrics and its validators are where that can be seen.
type calls struct {
	// count is the number of plugins, our own included.
	count *atomic.Int64

	mu      sync.Mutex
	reached map[string]bool
	failed  map[string]error
	removed map[string]bool // plugins that removed sysctls
}

func (c *calls) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached, c.failed, c.removed = map[string]bool{}, map[string]error{}, map[string]bool{}
}

// RecordPluginInvocation implements the library's Metrics.
func (c *calls) RecordPluginInvocation(plugin, operation string, err error) {
	if err == nil || operation == "Synchronize" { // that is not about the request in flight
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		c.failed[plugin] = err
	}
}

// RecordPluginLatency implements the library's Metrics.
func (*calls) RecordPluginLatency(string, string, time.Duration) {}

// RecordPluginAdjustments implements the library's Metrics.
func (c *calls) RecordPluginAdjustments(plugin, _ string, adjust *adaptation.ContainerAdjustment, _, _ int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range adjust.GetLinux().GetSysctl() {
		if _, removed := api.IsMarkedForRemoval(key); removed && c.removed != nil {
			c.removed[plugin] = true
		}
	}
}

// UpdatePluginCount implements the library's Metrics.
func (c *calls) UpdatePluginCount(n int) { c.count.Store(int64(n)) }

// present notes which plugins were called, and returns those that have answered. It also returns those that have removed sysctls.
func (c *calls) present(called []*api.PluginInstance) (answered []*api.PluginInstance, removed map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range called {
		name := p.GetIndex() + "-" + p.GetName()
		c.reached[name] = true
		if c.failed[name] == nil {
			answered = append(answered, p)
		}
	}
	return answered, maps.Clone(c.removed)
}

// is tells whether a plugin, named index-name, is the one that want names with or without its index.
func is(plugin, want string) bool {
	_, name, _ := strings.Cut(plugin, "-")
	return plugin == want || name == want
}

// missed is the error for a required plugin that failed the request in flight.
func (c *calls) missed(required []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for plugin, err := range c.failed {
		if slices.ContainsFunc(required, func(want string) bool { return is(plugin, want) }) {
			return fmt.Errorf("%w: plugin %s: %s", ErrRequired, plugin, err.Error())
		}
	}
	return nil
}

// required are the plugins that a pod, or its container if that has a name, needs by the configuration.
func (n *NRI) required(p Pod, container string) []string {
	if slices.Contains(n.cfg.Exempt, p.Namespace) {
		return nil
	}
	if n.cfg.Tolerate != "" {
		value, _ := annotations.GetEffectiveAnnotation(&api.PodSandbox{Annotations: p.Annotations}, n.cfg.Tolerate, container)
		if tolerated, err := strconv.ParseBool(value); err == nil && tolerated { // of other values the built-in validator complains
			return nil
		}
	}
	return n.cfg.Required
}

// checkRequired tells which required plugin was not there for the creation in flight. A plugin that an annotation of the pod requires is
// the built-in validator's to check.
func (n *NRI) checkRequired(p Pod, container string) error {
	n.calls.mu.Lock()
	defer n.calls.mu.Unlock()
	for _, want := range n.required(p, container) {
		there := false
		for plugin := range n.calls.reached {
			there = there || is(plugin, want)
		}
		if !there {
			return fmt.Errorf("%w: plugin %q is not connected; start it, or exempt namespace %q from [nri] required_plugins", ErrRequired, want, p.Namespace)
		}
	}
	return nil
}
