// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
)

// calls notes which plugins the request in flight has reached and which of them failed. The library itself goes on without a plugin that
// does not answer; its metrics and its validators are where that can be seen.
type calls struct {
	// count is the number of plugins, our own included.
	count *atomic.Int64

	mu      sync.Mutex
	reached map[string]bool
	failed  map[string]error
}

func (c *calls) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached, c.failed = map[string]bool{}, map[string]error{}
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
func (*calls) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {}

// UpdatePluginCount implements the library's Metrics.
func (c *calls) UpdatePluginCount(n int) { c.count.Store(int64(n)) }

// present is a validator that validates nothing: it is told which plugins there are.
func (c *calls) present(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range r.GetPlugins() {
		c.reached[p.GetIndex()+"-"+p.GetName()] = true
	}
	return nil
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

// required are the plugins that a pod needs.
func (n *NRI) required(p Pod) []string {
	if slices.Contains(n.cfg.Exempt, p.Namespace) {
		return nil
	}
	return n.cfg.Required
}

// checkRequired tells which required plugin was not there for the creation in flight. A plugin that an annotation of the pod requires is
// upstream's default validator's to check.
func (n *NRI) checkRequired(p Pod) error {
	n.calls.mu.Lock()
	defer n.calls.mu.Unlock()
	for _, want := range n.required(p) {
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
