// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// finish ends the daemon, looks for what is left of its pods, and then takes away all that is the demo's: whatever happened before.
func (d *demo) finish(ctx context.Context, ok bool) (clean bool) {
	d.detail.Reset()
	begin := time.Now()
	var errs []error
	if !ok {
		errs = append(errs, d.rescue(ctx))
	}
	if d.daemon != nil {
		stopping := time.Now()
		if err := d.daemon.stop(ctx); err != nil {
			errs = append(errs, err)
		} else {
			d.say("the daemon has ended %s after SIGTERM", since(stopping))
		}
	}
	if d.registry != nil {
		d.registry.close()
	}
	left := d.leftovers(ctx)
	swept := d.sweep(ctx)
	errs = append(errs, swept)
	if len(left) == 0 {
		d.say("looked for: processes, mounts, network namespaces, links, packet filter rules, cgroups, addresses, files")
	} else {
		errs = append(errs, fmt.Errorf("%d things were left", len(left)))
	}
	for _, l := range left {
		d.say("left: %s", l)
	}
	if len(left) > 0 && swept == nil {
		d.say("it was removed by force")
	}
	err := errors.Join(errs...)
	d.report("nothing is left", time.Since(begin), err)
	return err == nil
}

// rescue removes the pods of a demo that has failed, with a daemon that may have failed too.
func (d *demo) rescue(ctx context.Context) error {
	if d.daemon == nil {
		return nil
	}
	if !d.daemon.alive() {
		if err := d.startDaemon(ctx); err != nil {
			return err
		}
	}
	_, err := d.quiet(ctx, "rm", "--all", "--force")
	return err
}
