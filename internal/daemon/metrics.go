// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"github.com/berth-run/berth/internal/debug"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/telemetry"
)

// observers are nil where metrics are not served: nothing is measured then.
func (d *daemon) observers() (calls telemetry.Observer, pods pod.Observer) {
	if d.cfg.Metrics.Address == "" {
		return nil, nil
	}
	if d.metrics == nil {
		d.metrics = debug.NewMetrics(d.flags.Version)
	}
	return d.metrics, d.metrics
}

// serveMetrics begins to, if it is wanted.
func (d *daemon) serveMetrics(r pod.Recovery) (err error) {
	if d.metrics == nil {
		return nil
	}
	d.metrics.Recovered(r.Took)
	c := d.cfg.Metrics
	d.debug, err = debug.Listen(debug.Config{Address: c.Address, CertFile: c.CertFile, KeyFile: c.KeyFile, ClientCAFile: c.ClientCAFile, Debug: c.Debug,
		Log: d.log}, d.metrics, debug.Sources{Pods: d.pods, Calls: d.calls, FSInfo: d.images.FSInfo, Images: d.images.List, SetLevel: d.setLevel})
	return err
}

// setLevel changes the log's level until the next start or reload.
func (d *daemon) setLevel(level string) error {
	if err := d.logs.Set(d.inForce.Load().cfg.Log.Format, level); err != nil {
		return err
	}
	d.log.Info("log level is changed", "level", level)
	return nil
}
