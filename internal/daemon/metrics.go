// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"os"

	"github.com/berth-run/berth/internal/debug"
	"github.com/berth-run/berth/internal/linux/host"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/telemetry"
)

// measures tells whether metrics are served; nothing is measured where they are not.
func (d *daemon) measures() bool {
	if d.cfg.Metrics.Address == "" {
		return false
	}
	if d.metrics == nil {
		d.metrics = debug.NewMetrics(d.flags.Version)
	}
	return true
}

// observers are nil where nothing is measured.
func (d *daemon) observers() (calls telemetry.Observer, pods pod.Observer) {
	if !d.measures() {
		return nil, nil
	}
	return d.metrics, d.metrics
}

// openTracer begins to make spans, if they are wanted. The collector need not be there.
func (d *daemon) openTracer(ctx context.Context) (err error) {
	c := d.cfg.Tracing
	if c.Endpoint == "" {
		return nil
	}
	node, err := os.Hostname()
	if err != nil {
		return err
	}
	d.tracer, err = telemetry.NewTracer(ctx, telemetry.TracingConfig{Endpoint: c.Endpoint, SamplingRatePerMillion: c.SamplingRatePerMillion,
		Insecure: c.Insecure, CAFile: c.CAFile, Version: d.flags.Version, Node: node, Log: d.log})
	if err == nil {
		d.log.Info("traces are sent", "endpoint", c.Endpoint, "sampling_rate_per_million", c.SamplingRatePerMillion)
	}
	return err
}

// serveMetrics begins to, if it is wanted.
func (d *daemon) serveMetrics(r pod.Recovery) (err error) {
	if d.metrics == nil {
		return nil
	}
	d.metrics.Recovered(r.Took)
	sources := debug.Sources{Pods: d.pods, Calls: d.calls, FSInfo: d.images.FSInfo, Images: d.images.List, SetLevel: d.setLevel, ShimMemory: d.runtime.ShimMemory}
	if d.denials, err = host.OpenDenials(); err == nil {
		sources.Denials = d.denials.Count
	} else {
		d.log.Info("denials of seccomp are not counted", "error", err)
	}
	c := d.cfg.Metrics
	d.debug, err = debug.Listen(debug.Config{Address: c.Address, CertFile: c.CertFile, KeyFile: c.KeyFile, ClientCAFile: c.ClientCAFile, Debug: c.Debug,
		Log: d.log}, d.metrics, sources)
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
