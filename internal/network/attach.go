// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-run/berth/internal/linux/netns"
)

// Attach connects a sandbox with the network that is configured now. What was done before an error stays until
// Detach, which the caller owes after every Attach, also after one that a crash cut off.
func (n *Network) Attach(ctx context.Context, a Attachment) (Result, error) {
	if err := a.validate(); err != nil {
		return Result{}, err
	}
	capabilities, err := a.capabilities()
	if err != nil {
		return Result{}, err
	}
	s := n.snapshot()
	if err := s.notReady(n.cfg.ConfDir); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.AddTimeout)
	defer cancel()
	if err := n.gate.enter(ctx); err != nil {
		return Result{}, err
	}
	defer n.gate.leave()
	held, err := n.cache.find(a.ID)
	if err != nil {
		return Result{}, err
	}
	if len(held) > 0 {
		return Result{}, fmt.Errorf("%w: %s to network %s", ErrAttached, a.ID, held[0].NetworkName)
	}
	e := entry{Kind: libcni.CNICacheV1, ContainerID: a.ID, Config: s.list.Bytes, IfName: ifName, NetworkName: s.list.Name, NetNS: a.NetnsPath,
		CNIArgs: a.cniArgs(), Capabilities: capabilities, Berth: progress{Running: "ADD", Daemon: n.daemon}}
	n.warnOfIgnored(s.list, e)
	result, err := n.add(ctx, chain{list: s.list, dirs: n.cfg.BinDirs, e: e})
	if err != nil {
		return Result{}, fmt.Errorf("attach to network %s: %w", s.list.Name, err)
	}
	return toResult(s.list.Name, result)
}

func (n *Network) add(ctx context.Context, c chain) (types.Result, error) {
	if err := n.cache.write(c.e); err != nil {
		return nil, err
	}
	var result types.Result
	for i, p := range c.list.Plugins {
		run, err := c.call("ADD", p, result)
		if err != nil {
			return nil, err
		}
		if result, err = n.run.result(ctx, run); err != nil {
			return nil, err
		}
		if err := c.e.keep(result); err != nil {
			return nil, err
		}
		if i == len(c.list.Plugins)-1 {
			c.e.Berth.Running = ""
		}
		if err := n.cache.write(c.e); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// warnOfIgnored tells of host ports and limits that no plugin of the chain will see to: elsewhere they vanish silently.
func (n *Network) warnOfIgnored(list *libcni.NetworkConfigList, e entry) {
	for _, capability := range []string{"portMappings", "bandwidth"} {
		if _, asked := e.Capabilities[capability]; !asked {
			continue
		}
		served := false
		for _, p := range list.Plugins {
			served = served || p.Network.Capabilities[capability]
		}
		if !served {
			n.log.Warn("no plugin of the network has the capability, the pod's wish is ignored", "capability", capability,
				"network", list.Name, "sandbox", e.ContainerID)
		}
	}
}

// Detach disconnects a sandbox from what it was connected with, as it was then configured. It needs no namespace, is
// idempotent, and lets every plugin of the chain do its part even when another fails or is missing. After
// an error it is to be called again; a plugin that stays missing is given up after Config.MissingGrace.
func (n *Network) Detach(ctx context.Context, a Attachment) error {
	entries, err := n.cache.find(a.ID)
	if err != nil {
		return err
	}
	if a.ID == "" { // find would take it for all
		return fmt.Errorf("%w: no sandbox ID", ErrInvalid)
	}
	var errs []error
	for _, e := range entries {
		if err := n.detach(ctx, e, a); err != nil {
			errs = append(errs, fmt.Errorf("detach from network %s: %w", e.NetworkName, err))
		}
	}
	return errors.Join(errs...)
}

func (n *Network) detach(ctx context.Context, e entry, a Attachment) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.DelTimeout)
	defer cancel()
	if e.Berth.Running != "" && e.Berth.Daemon != n.daemon {
		n.endLeftOver(ctx, e)
	}
	c, err := n.remembered(e)
	if err != nil {
		return err
	}
	c.e.NetNS = pinned(a.NetnsPath, e.NetNS)
	mark := c.e
	mark.NetNS, mark.Berth.Running, mark.Berth.Daemon = e.NetNS, "DEL", n.daemon
	if err := n.cache.write(mark); err != nil {
		return err
	}
	if a.OwnStack && c.e.NetNS != "" {
		if err := c.giveBack(); err != nil {
			n.log.Warn("CNI plugins may leave packet filter rules", "network", e.NetworkName, "sandbox", e.ContainerID, "error", err)
		}
	}
	errs := n.del(ctx, c)
	if err := errors.Join(errs...); err != nil && !n.givenUp(mark, errs) {
		if mark.Berth.FailedSince.IsZero() {
			mark.Berth.FailedSince = time.Now()
		}
		mark.Berth.Running = ""
		return errors.Join(err, n.cache.write(mark))
	}
	return n.cache.remove(e)
}

// pinned returns the first path that a namespace is mounted on. CNI wants an empty path when there is none, and plugins
// fail when they are sent to a file that is no namespace.
func pinned(paths ...string) string {
	for _, p := range paths {
		if p != "" && netns.Pinned(p) {
			return p
		}
	}
	return ""
}

// remembered is the chain that a sandbox was connected with. When the entry cannot be read, which takes a power cut,
// today's configuration of the same name is the best guess.
func (n *Network) remembered(e entry) (chain, error) {
	c := chain{dirs: n.cfg.BinDirs, e: e}
	if e.Kind != "" {
		list, err := parseList(e.Config, "")
		if err == nil {
			c.list = list
			return c, nil
		}
		n.log.Warn("remembered CNI configuration cannot be read", "network", e.NetworkName, "sandbox", e.ContainerID, "error", err)
	}
	s := n.snapshot()
	if s.list == nil || s.list.Name != e.NetworkName {
		return c, fmt.Errorf("%w: what %s was attached with cannot be read, and there is no configuration of that name", ErrNotReady, e.ContainerID)
	}
	c.list = s.list
	c.e.Kind, c.e.Config, c.e.Result = libcni.CNICacheV1, s.list.Bytes, nil
	c.e.CNIArgs = Attachment{ID: e.ContainerID}.cniArgs()
	return c, nil
}

// del runs DEL from the last plugin to the first. Each gets an equal share of the time that is left, so that one which
// hangs does not take it from the others.
func (n *Network) del(ctx context.Context, c chain) []error {
	prev, err := c.previous()
	if err != nil { // plugins can do without
		n.log.Warn("CNI DEL without the previous result", "error", err)
	}
	deadline, _ := ctx.Deadline()
	var errs []error
	for i := len(c.list.Plugins) - 1; i >= 0; i-- {
		run, err := c.call("DEL", c.list.Plugins[i], prev)
		if err == nil {
			share, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(i+1))
			err = n.run.do(share, run)
			cancel()
		}
		if err != nil {
			n.log.Warn("CNI DEL failed, the other plugins go on", "network", c.list.Name, "sandbox", c.e.ContainerID, "error", err)
			errs = append(errs, err)
		}
	}
	return errs
}

// givenUp tells whether nothing but missing plugins keeps the sandbox from being detached, and for long enough.
func (n *Network) givenUp(e entry, errs []error) bool {
	for _, err := range errs {
		if !errors.Is(err, ErrPluginNotFound) {
			return false
		}
	}
	since := e.Berth.FailedSince
	if n.cfg.MissingGrace == 0 || since.IsZero() || time.Since(since) < n.cfg.MissingGrace {
		return false
	}
	n.log.Error("CNI plugin stays missing, what it holds for the sandbox is given up", "network", e.NetworkName, "sandbox", e.ContainerID,
		"since", since, "error", errors.Join(errs...))
	return true
}

// Check asks the plugins whether a sandbox is still connected as it was. Networks that have no CHECK are content.
func (n *Network) Check(ctx context.Context, a Attachment) error {
	if a.ID == "" {
		return fmt.Errorf("%w: no sandbox ID", ErrInvalid)
	}
	entries, err := n.cache.find(a.ID)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return fmt.Errorf("check network of %s: it is not attached", a.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.CheckTimeout)
	defer cancel()
	for _, e := range entries {
		if err := n.check(ctx, e); err != nil {
			return fmt.Errorf("check network %s of %s: %w", e.NetworkName, a.ID, err)
		}
	}
	return nil
}

func (n *Network) check(ctx context.Context, e entry) error {
	if e.Berth.Running != "" || !e.Berth.FailedSince.IsZero() {
		return errors.New("it is only half attached")
	}
	c, err := n.remembered(e)
	if err != nil {
		return err
	}
	if c.list.DisableCheck || !atLeast(c.list, "0.4.0") {
		return nil
	}
	prev, err := c.previous()
	if err != nil {
		return err
	}
	for _, p := range c.list.Plugins {
		run, err := c.call("CHECK", p, prev)
		if err != nil {
			return err
		}
		if err := n.run.do(ctx, run); err != nil {
			return err
		}
	}
	return nil
}
