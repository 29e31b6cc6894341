// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// Cached lists the sandboxes that something is held for, sorted.
func (n *Network) Cached(context.Context) ([]string, error) {
	names, err := n.cache.names()
	if err != nil {
		return nil, err
	}
	return slices.Compact(slices.Sorted(maps.Values(names))), nil
}

// GC frees what earlier daemons left: it detaches every sandbox that is not kept and was not attached by this process
// (those have an owner that is alive), and then has the plugins that know the GC verb (spec 1.1) free whatever
// belongs to no attachment. All is tried; the errors are joined.
func (n *Network) GC(ctx context.Context, keep []string) error {
	entries, err := n.cache.find("")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if slices.Contains(keep, e.ContainerID) || e.Berth.Daemon == n.daemon {
			continue
		}
		n.log.Info("network attachment of no sandbox is released", "sandbox", e.ContainerID, "network", e.NetworkName)
		if err := n.detach(ctx, e, Attachment{}); err != nil {
			errs = append(errs, fmt.Errorf("detach %s from network %s: %w", e.ContainerID, e.NetworkName, err))
		}
	}
	return errors.Join(append(errs, n.collect(ctx, keep))...)
}

// collect runs the GC verb. It is not run while pods are being attached, and Attach waits for it.
func (n *Network) collect(ctx context.Context, keep []string) error {
	s := n.snapshot()
	if s.list == nil || s.list.DisableGC || !atLeast(s.list, "1.1.0") {
		return nil
	}
	shared, err := n.foreign(s.list.Name)
	if err != nil {
		return err
	}
	if shared > 0 {
		n.log.Info("network is shared with another container runtime, its garbage is not collected", "network", s.list.Name, "attachments", shared)
		return nil
	}
	done, ok := n.gate.tryCollect()
	if !ok {
		n.log.Debug("network's garbage is not collected while pods are attached", "network", s.list.Name)
		return nil
	}
	defer done()
	valid, err := n.valid(s.list.Name, keep)
	if err != nil {
		return err
	}
	// cni.dev/attachments is what the specification first said by mistake, and plugins believed it.
	inject := map[string]any{"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.CheckTimeout)
	defer cancel()
	var errs []error
	for _, p := range s.list.Plugins {
		if err := n.verb(ctx, "GC", s.list, p, inject); err != nil {
			errs = append(errs, fmt.Errorf("collect garbage of network %s: %w", s.list.Name, err))
		}
	}
	return errors.Join(errs...)
}

// valid lists what must stay: all that is remembered, also where a DEL failed (it is retried), and all that is kept.
func (n *Network) valid(network string, keep []string) ([]types.GCAttachment, error) {
	entries, err := n.cache.find("")
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, id := range keep {
		ids[id] = true
	}
	for _, e := range entries {
		if e.NetworkName == network {
			ids[e.ContainerID] = true
		}
	}
	valid := []types.GCAttachment{} // not null in JSON
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		valid = append(valid, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	return valid, nil
}

// foreign counts the pods of other runtimes in a network.
func (n *Network) foreign(network string) (int, error) {
	count := 0
	for _, dir := range n.cfg.ForeignCacheDirs {
		all, err := libcni.NewCNIConfigWithCacheDir(nil, dir, nil).GetCachedAttachments("")
		if err != nil {
			return 0, fmt.Errorf("look for other runtimes' pods: %w", err)
		}
		for _, a := range all {
			if a.Network == network {
				count++
			}
		}
	}
	return count, nil
}
