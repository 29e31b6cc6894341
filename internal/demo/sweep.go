// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/iptables"
)

// sweep removes all that is the demo's own, whether it should have been left or not, and puts back what its plugins have changed on
// the machine. It goes on after an error.
func (d *demo) sweep(ctx context.Context) error {
	errs := []error{d.sweepProcesses(), d.sweepMounts(), d.sweepRules(ctx), d.sweepChains(ctx), d.sweepLinks(ctx), d.sweepCgroups(), d.restore()}
	mounts, err := d.mounts()
	switch {
	case err != nil || len(mounts) > 0:
		errs = append(errs, err, fmt.Errorf("folder %s is kept: %d mounts are still in it", d.dir, len(mounts)))
	default:
		if err := os.RemoveAll(d.dir); err != nil {
			errs = append(errs, fmt.Errorf("remove folder: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (d *demo) sweepProcesses() error {
	for range 50 {
		all, err := d.processes()
		if err != nil || len(all) == 0 {
			return err
		}
		for _, p := range all {
			d.killIf(p)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("some processes of the demo cannot be killed")
}

// killIf kills a process by a handle, after another look: the number may be somebody else's by now.
func (d *demo) killIf(p found) {
	process, err := os.FindProcess(p.pid)
	if err != nil {
		return
	}
	if _, mine := d.owns(p.pid); mine {
		_ = process.Kill() // it may have ended
	}
	_ = process.Release()
}

func (d *demo) sweepMounts() error {
	mounts, err := d.mounts()
	errs := []error{err}
	for _, m := range slices.Backward(mounts) {
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// run runs a tool of the machine.
func run(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func natTable(ctx context.Context, args ...string) error {
	return run(ctx, append([]string{"iptables", "-w", "10", "-t", "nat"}, args...)...)
}

// sweepRules deletes rules that name the demo's network, and then the chains that they led to.
func (d *demo) sweepRules(ctx context.Context) error {
	rules, err := d.ownRules(ctx)
	errs := []error{err}
	var chains []string
	for _, r := range rules {
		if to := r.Target(); strings.HasPrefix(to, "CNI-") && !slices.Contains(portmapChains, to) {
			chains = append(chains, to)
		}
		errs = append(errs, natTable(ctx, r.Deletion()...))
	}
	for _, c := range chains {
		errs = append(errs, natTable(ctx, "-F", c), natTable(ctx, "-X", c))
	}
	return errors.Join(errs...)
}

// portmapChains are the chains that all networks of a machine share; the first has a rule for each port. The plugin never removes them.
var portmapChains = []string{"CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"}

// sweepChains removes the shared chains that were not there before the demo, unless another network has a host port in them by now.
func (d *demo) sweepChains(ctx context.Context) error {
	rules, err := natRules(ctx)
	if err != nil {
		return err
	}
	inUse := slices.ContainsFunc(rules, func(r iptables.Rule) bool { return len(r) > 2 && r[0] == "-A" && r[1] == portmapChains[0] })
	if inUse || slices.Contains(d.before.chains, portmapChains[0]) {
		return nil
	}
	var errs []error
	for _, r := range rules {
		if r[0] == "-A" && slices.Contains(portmapChains, r.Target()) {
			errs = append(errs, natTable(ctx, r.Deletion()...))
		}
	}
	for _, c := range portmapChains {
		if slices.ContainsFunc(rules, func(r iptables.Rule) bool { return slices.Equal(r, iptables.Rule{"-N", c}) }) {
			errs = append(errs, natTable(ctx, "-F", c), natTable(ctx, "-X", c))
		}
	}
	return errors.Join(errs...)
}

// sweepLinks deletes the bridge, which the bridge plugin leaves for the next pod, and what still hangs on it.
func (d *demo) sweepLinks(ctx context.Context) error {
	ports, err := d.ports()
	errs := []error{err}
	for _, p := range ports {
		errs = append(errs, run(ctx, "ip", "link", "delete", p))
	}
	if _, err := os.Stat("/sys/class/net/" + d.bridge); err == nil {
		errs = append(errs, run(ctx, "ip", "link", "delete", d.bridge))
	}
	return errors.Join(errs...)
}

func (d *demo) sweepCgroups() error {
	var err error
	for range 20 {
		var folders []string
		folders, err = d.cgroups()
		errs := []error{err}
		for _, f := range slices.Backward(folders) {
			if err := syscall.Rmdir(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", f, err))
			}
		}
		if err = errors.Join(errs...); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond) // a killed process leaves its cgroup a moment later
	}
	return err
}

// restore switches forwarding off again if the bridge plugin has switched it on.
func (d *demo) restore() error {
	now, err := os.ReadFile(forwardSetting)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(now)) == d.before.forward {
		return nil
	}
	return os.WriteFile(forwardSetting, []byte(d.before.forward), 0)
}
