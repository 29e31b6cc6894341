// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-run/berth/internal/config"
	"github.com/berth-run/berth/internal/cri"
	"github.com/berth-run/berth/internal/cri/stream"
	"github.com/berth-run/berth/internal/debug"
	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/cgroup/slice"
	"github.com/berth-run/berth/internal/linux/host"
	"github.com/berth-run/berth/internal/network"
	"github.com/berth-run/berth/internal/nri"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/spec"
	"github.com/berth-run/berth/internal/stats"
	"github.com/berth-run/berth/internal/telemetry"
)

// shimTimeout bounds how long a start-up waits for one shim; all are asked at once. shimPatience is for those that did not answer by then.
const (
	shimTimeout  = 2 * time.Second
	shimPatience = 2 * time.Minute
)

// parts are what serve is made of, in the order in which they are opened.
type parts struct {
	lock    *os.File
	slices  *slice.Manager
	top     *topCgroup // nil under systemd
	images  *image.Store
	network *network.Network
	runtime *runtime.Runtime
	pods    *pod.Manager
	nri     *nri.NRI // nil: not enabled
	stats   *stats.Collector
	metrics *debug.Metrics // nil: not served
	denials *host.Denials  // nil: not counted
	debug   *debug.Server  // nil: not served
	calls   *telemetry.Calls
	tracer  *telemetry.Tracer // nil: off
	api     *cri.Server
	streams *stream.Server
}

// open builds all parts. What it has opened when one fails is closed by close.
func (d *daemon) open(ctx context.Context) error {
	c := d.cfg
	if err := d.openFolders(); err != nil {
		return err
	}
	if err := d.openTracer(ctx); err != nil {
		return err
	}
	shim, err := config.Program(c.Shim.Path, "berth-shim")
	if err != nil {
		return fmt.Errorf("[shim] path: %w", err)
	}
	driver := c.Cgroup.EffectiveDriver(systemdRuns())
	k, err := d.openKernel(driver)
	if err != nil {
		return err
	}
	facts, err := hostFacts(k.cgroups)
	if err != nil {
		return err
	}
	k.oomFloor = facts.OOMScoreFloor
	if d.images, err = image.Open(ctx, d.imageConfig(), d.log); err != nil {
		return err
	}
	if d.network, err = network.New(d.networkConfig(), d.log); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if d.runtime, err = d.openRuntime(shim, driver); err != nil {
		return err
	}
	boot, err := host.BootID()
	if err != nil {
		return err
	}
	specs, err := newSpecMaker(facts, c, d.can, d.log)
	if err != nil {
		return err
	}
	hooks, err := d.openNRI(specs)
	if err != nil {
		return err
	}
	if err := specs.loadProfile(); err != nil {
		d.log.Warn("containers that name no AppArmor profile run unconfined; those that ask for RuntimeDefault are refused", "error", err)
	}
	labels, err := d.openLabels()
	if err != nil {
		return err
	}
	d.stats = stats.New(stats.Config{Cgroups: k.cgroups, Driver: driver, Ask: d.runtime.Stats, Log: d.log})
	_, measured := d.observers()
	d.pods = pod.New(d.podConfig(shim, driver, boot),
		pod.Parts{Runtime: shims{d.runtime}, Network: d.network, Images: d.images, Host: k, Specs: specs, Labels: labels, Hooks: hooks,
			Observer: measured, Ended: d.stats.Forget}, d.log)
	if d.streams, err = stream.New(d.streamConfig()); err != nil {
		return err
	}
	d.calls = telemetry.NewCalls()
	d.api = cri.New(d.apiConfig(driver, specs))
	return nil
}

func (d *daemon) podConfig(shim, driver, boot string) pod.Config {
	c := d.cfg
	return pod.Config{
		Root:             c.Root,
		State:            c.State,
		NetnsDir:         c.Network.NetnsDir,
		CgroupDriver:     driver,
		CgroupParent:     c.Cgroup.Parent,
		DefaultHandler:   c.DefaultRuntime,
		PauseBinary:      shim,
		Boot:             boot,
		ExecOutputLimit:  int64(c.Exec.SyncOutputLimit),
		CgroupfsHandlers: d.cgroupfsHandlers(),
		ShimTimeout:      shimTimeout,
		ShimPatience:     shimPatience,
		Traced:           d.tracer != nil,
	}
}

func (d *daemon) apiConfig(driver string, specs specMaker) cri.Config {
	return cri.Config{
		Pods:         d.pods,
		Images:       d.images,
		Streams:      d.streams,
		Stats:        d.stats,
		InFlight:     d.calls.List,
		NetworkReady: d.network.Ready,
		Version:      d.flags.Version,
		CgroupDriver: driver,
		Handlers:     d.handlers,
		Conditions:   specs.conditions,
		Effective:    d.effective,
		Log:          d.log,
	}
}

// openFolders makes the daemon's folders and locks them against a second one.
func (d *daemon) openFolders() (err error) {
	for _, f := range []struct {
		path string
		mode os.FileMode
	}{{d.cfg.Root, 0o700}, {d.cfg.State, 0o711}, {filepath.Join(d.cfg.State, "pods"), 0o711}} {
		if err := closeFolder(f.path, f.mode); err != nil {
			return fmt.Errorf("folder %s: %w", f.path, err)
		}
	}
	d.lock, err = lockRoot(d.cfg.Root)
	return err
}

// close gives back what open took, in reverse. Pods are not among it.
func (d *daemon) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	var errs []error
	if d.streams != nil {
		errs = append(errs, d.streams.Close())
	}
	if d.pods != nil {
		if err := d.pods.Close(ctx); err != nil {
			d.log.Warn("shutdown", "error", err)
		}
	}
	if d.top != nil {
		errs = append(errs, d.top.drop())
	}
	if d.nri != nil {
		d.nri.Stop()
	}
	if d.debug != nil {
		errs = append(errs, d.debug.Close())
	}
	if d.denials != nil {
		errs = append(errs, d.denials.Close())
	}
	if d.stats != nil {
		d.stats.Close()
	}
	if d.runtime != nil {
		d.runtime.Close()
	}
	if d.network != nil {
		errs = append(errs, d.network.Close())
	}
	if d.images != nil {
		errs = append(errs, d.images.Close())
	}
	if d.slices != nil {
		d.slices.Close()
	}
	if d.tracer != nil { // last: what came before may have had something to tell
		if err := d.tracer.Close(ctx); err != nil {
			d.log.Warn("shutdown", "error", err)
		}
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

func systemdRuns() bool {
	info, err := os.Stat("/run/systemd/system")
	return err == nil && info.IsDir()
}

func (d *daemon) openKernel(driver string) (kernel, error) {
	h, err := cgroup.Detect()
	if err != nil {
		return kernel{}, fmt.Errorf("cgroups: %w", err)
	}
	if driver == cgroup.Systemd {
		d.slices = slice.New()
		if err := d.connectSystemd(); err != nil {
			return kernel{}, err
		}
	}
	k := kernel{cgroups: h, driver: driver, slices: d.slices}
	if driver != cgroup.Systemd { // systemd keeps its slices itself
		path, err := cgroup.ParentPath(driver, d.cfg.Cgroup.Parent)
		if err != nil {
			return kernel{}, fmt.Errorf("cgroup.parent: %w", err)
		}
		d.top = &topCgroup{cgroups: h, path: path, mark: filepath.Join(d.cfg.State, "cgroup-made")}
		k.top = d.top
	}
	return k, nil
}

// connectSystemd reaches systemd before the first pod needs it. One that is only slow, as in a boot, is tried again by each call.
func (d *daemon) connectSystemd() error {
	ctx, cancel := context.WithTimeout(context.Background(), systemdTime)
	defer cancel()
	err := d.slices.Connect(ctx)
	if ctx.Err() != nil {
		d.log.Warn("systemd does not answer", "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("cgroup.driver: %w", err)
	}
	return nil
}

func hostFacts(h *cgroup.Hierarchies) (spec.Host, error) {
	var facts spec.Host
	caps, err := host.BoundingSet()
	if err != nil {
		return facts, err
	}
	floor, err := host.OOMScoreFloor(caps)
	if err != nil {
		return facts, err
	}
	limits, err := host.Limits(caps)
	if err != nil {
		return facts, err
	}
	controllers, err := h.Controllers()
	if err != nil {
		return facts, err
	}
	service, err := cgroup.OwnService()
	if err != nil {
		return facts, err
	}
	return spec.Host{Service: service, NoHugePages: !slices.Contains(controllers, "hugetlb"), CgroupV2: h.Mode() == cgroup.Unified, Capabilities: caps, OOMScoreFloor: floor, Limits: limits,
		AppArmor: host.AppArmor(), NoX32: host.NoX32()}, nil
}

func (d *daemon) imageConfig() image.Config {
	c := d.cfg
	out := image.Config{Root: filepath.Join(c.Root, "image"), Rootfs: filepath.Join(c.Root, "rootfs"), CertsDirs: c.Registry.ConfigPaths(),
		MaxConcurrentDownloads: c.Registry.MaxConcurrentDownloads, StallTimeout: c.Registry.StallTimeout,
		MaxPerRegistry: c.Registry.MaxPerRegistry, LayerConnections: c.Registry.LayerConnections, CredentialFiles: c.Registry.CredentialFiles,
		UnpackTimeout: c.Images.UnpackTimeout, PolicyFile: c.Images.SignaturePolicy,
		Snapshotter: c.Images.Snapshotter, KeepLayers: c.Images.KeepLayers, FSVerity: c.Images.FSVerity, SkipSync: !c.Images.Sync, Pinned: c.Images.Pinned}
	for name, s := range c.Snapshotters {
		out.Remotes = append(out.Remotes, image.Remote{Name: name, Address: s.Address, Timeout: s.Timeout})
	}
	for name, r := range c.Runtimes {
		if r.Snapshotter != "auto" {
			if out.Handlers == nil {
				out.Handlers = map[string]string{}
			}
			out.Handlers[name] = r.Snapshotter
		}
	}
	if d.measures() {
		out.Pulled, out.Collected = d.metrics.Pulled, d.metrics.Collected
	}
	return out
}

func (d *daemon) networkConfig() network.Config {
	c, n := d.cfg.Network, network.Default()
	n.ConfDir, n.BinDirs, n.CacheDir = c.ConfDir, c.BinDirs, filepath.Join(d.cfg.Root, "network")
	n.AddTimeout, n.DelTimeout = c.AddTimeout, c.DelTimeout
	if d.measures() {
		n.Ran = d.metrics.PluginRan
	}
	// The plugins that were built together with this binary come last: a network provider's own win.
	if self, err := os.Executable(); err == nil {
		n.BinDirs = append(append([]string(nil), n.BinDirs...), filepath.Join(filepath.Dir(self), "cni"))
	}
	return n
}

func (d *daemon) streamConfig() stream.Config {
	c := d.cfg.Streaming
	out := stream.Config{Pods: d.pods, Address: c.Address, Port: c.Port, CertFile: c.CertFile, KeyFile: c.KeyFile, ClientCAFile: c.ClientCAFile,
		IdleTimeout: c.IdleTimeout, CreationTimeout: c.CreationTimeout, MaxSessions: c.MaxSessions, Log: d.log}
	if d.measures() {
		out.Opened = d.metrics.StreamOpened
	}
	return out
}

func (d *daemon) openRuntime(shim, driver string) (*runtime.Runtime, error) {
	handlers := map[string]runtime.Handler{}
	for name, r := range d.cfg.Runtimes {
		h, err := openHandler(name, r, shim, driver)
		if err != nil {
			return nil, err
		}
		handlers[name] = h
	}
	return runtime.New(runtime.Config{ShimPath: shim, StateDir: d.cfg.State, Handlers: handlers, Default: d.cfg.DefaultRuntime}, d.log)
}

// effective is the configuration in force, and where the network's came from.
func (d *daemon) effective() any {
	now := d.inForce.Load()
	return map[string]any{"berth": config.Entries(now.cfg, now.origins), "network": d.network.Info()}
}
