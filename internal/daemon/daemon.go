// SPDX-License-Identifier: Apache-2.0

// Package daemon builds every part, recovers, serves and shuts down: it is `berth serve`, and the only package that knows all
// others. Nothing imports it but cmd/berth.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"

	"github.com/berth-run/berth/internal/config"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/telemetry"
)

// Flags are serve's command line; empty values leave the configuration as it is.
type Flags struct {
	Config  string
	Root    string
	State   string
	Socket  string
	Version string
}

const (
	// closeTime bounds, with drainTime, a shutdown: SIGTERM ends the daemon within a second.
	closeTime = 500 * time.Millisecond
	// systemdTime bounds the wait for systemd at the start.
	systemdTime = 5 * time.Second
)

// Run serves until ctx ends or SIGTERM or SIGINT comes. Pods run on. SIGHUP reloads what can be.
func Run(ctx context.Context, flags Flags) error {
	opts := flags.options()
	cfg, origins, err := config.Load(opts)
	if err != nil {
		return err
	}
	logs, err := telemetry.NewLog(os.Stderr, cfg.Log.Format, cfg.Log.Level)
	if err != nil {
		return err
	}
	d := &daemon{flags: flags, opts: opts, cfg: cfg, logs: logs, log: logs.Logger()}
	d.inForce.Store(&inForce{cfg, origins})
	_, ignored := config.OnMachine(cfg, origins)
	for _, p := range ignored {
		d.log.Warn("the configuration names what is not here", "problem", p)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	begin := time.Now()
	if err := d.open(ctx); err != nil {
		return errors.Join(err, d.close())
	}
	err = d.serve(ctx, begin)
	return errors.Join(err, d.close())
}

func (f Flags) options() config.Options {
	o := config.Options{File: f.Config}
	for _, v := range []struct{ key, value string }{{"root", f.Root}, {"state", f.State}, {"socket", f.Socket}} {
		if v.value != "" {
			o.Overrides = append(o.Overrides, config.Override{Key: v.key, Value: v.value, Origin: "flag --" + v.key})
		}
	}
	return o
}

// daemon is one run of `berth serve`.
type daemon struct {
	flags Flags
	opts  config.Options
	cfg   *config.Config // as it was at the start: what parts were built from
	logs  *telemetry.Log
	log   *slog.Logger

	// inForce is cfg and origins with what was reloaded since; requests read it.
	inForce atomic.Pointer[inForce]

	parts
}

// inForce is a configuration and where its values came from. It is never changed.
type inForce struct {
	cfg     *config.Config
	origins config.Origins
}

// serve recovers the pods of earlier lives, then answers requests until ctx ends.
func (d *daemon) serve(ctx context.Context, begin time.Time) error {
	// The socket is taken before the recovery, so that a second daemon is refused before it touches anything;
	// what a kubelet sends meanwhile waits in the listen queue.
	endpoints, err := d.listen()
	if err != nil {
		return err
	}
	defer closeAll(endpoints)
	go d.reserve()
	r, err := d.pods.Recover(ctx)
	if err != nil {
		return err
	}
	for _, trouble := range r.SetAside {
		d.log.Error("recovery", "error", trouble)
	}
	// Plugins come after the recovery, which decides what they are told, and before the first request.
	if d.nri != nil {
		if err := d.nri.Start(d.pods); err != nil {
			return err
		}
	}
	if err := d.serveMetrics(r); err != nil {
		return err
	}
	d.log.Info("serving", "socket", d.cfg.Socket, "version", d.flags.Version, "sandboxes", r.Sandboxes, "containers", r.Containers,
		"adopted", r.Adopted, "exited_meanwhile", r.Exited, "orphans_swept", r.Swept, "recovery", r.Took, "start", time.Since(begin))
	// The start has read much that is not needed again: what serves for weeks begins small.
	debug.FreeOSMemory()
	served := make(chan error, len(endpoints)+1)
	for _, e := range endpoints {
		go func() { served <- e.serve() }()
	}
	go func() { served <- d.streams.Serve() }()
	d.notify(sdnotify.SdNotifyReady)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case err := <-served:
			return err
		case <-hup:
			d.reload()
		case <-ctx.Done():
			d.drain(endpoints)
			return nil
		}
	}
}

// descriptors is how many open files there is room for from the start on, without which the first statistics of a hundred containers would take ten
// times as long as the next ones.
const descriptors = 8192

func (d *daemon) reserve() {
	if err := proc.ReserveDescriptors(descriptors); err != nil {
		d.log.Debug("answers that open many files will be slower the first time", "error", err)
	}
}

func (d *daemon) notify(state string) {
	if _, err := sdnotify.SdNotify(false, state); err != nil {
		d.log.Warn("tell systemd", "state", state, "error", err)
	}
}

// reload takes over what can change while serving; the rest is named and waits for a restart.
func (d *daemon) reload() {
	d.notify(sdnotify.SdNotifyReloading)
	defer d.notify(sdnotify.SdNotifyReady)
	next, origins, err := config.Load(d.opts)
	if err != nil {
		d.log.Error("reload: the configuration in force stays", "error", err)
		return
	}
	now := d.inForce.Load()
	changed, restart := config.Reloadable(now.cfg, next)
	if err := d.logs.Set(next.Log.Format, next.Log.Level); err != nil {
		d.log.Error("reload", "error", err)
		return
	}
	d.images.SetCertsDirs(next.Registry.ConfigPaths())
	if err := d.images.ReloadPolicy(); err != nil {
		d.log.Error("reload: the signature policy in force stays", "error", err)
	}
	merged := *now.cfg
	merged.Log, merged.Registry.ConfigPath = next.Log, next.Registry.ConfigPath
	from := maps.Clone(now.origins)
	for _, key := range changed {
		from[key] = origins[key]
	}
	d.inForce.Store(&inForce{&merged, from})
	if len(restart) > 0 {
		d.log.Warn("reloaded; some changes wait for a restart", "changed", changed, "needs_restart", restart)
		return
	}
	d.log.Info("reloaded", "changed", changed)
}

// describe adds the names that people know to a log line about a request that has only IDs.
func (d *daemon) describe(o *telemetry.Object) {
	if o.Container != "" {
		if c, err := d.pods.ContainerByID(o.Container); err == nil {
			o.Container, o.Sandbox, o.Name = c.ID, c.Sandbox().ID, c.Config.GetMetadata().GetName()
		}
	}
	if o.Sandbox != "" {
		if s, err := d.pods.SandboxByID(o.Sandbox); err == nil {
			md := s.Config.GetMetadata()
			o.Sandbox, o.Pod = s.ID, md.GetNamespace()+"/"+md.GetName()
		}
	}
}
