// SPDX-License-Identifier: Apache-2.0

// Package network connects pod sandboxes through CNI: it finds the network's configuration, runs the plugin chain,
// and remembers what each sandbox was connected with, so that it can be disconnected after a restart, a reboot or
// a change of the configuration. For pod and daemon; the only importer of containernetworking/cni.
//
// libcni reads and checks configurations here. The plugins of a chain are driven one by one, because libcni's own
// chain remembers an attachment only when the whole ADD is through (kill -9 half-way would lose it) and ends a
// DEL at the first plugin that fails (the IP address of the others would leak). A plugin is asked for its
// VERSION never: the configuration says which version to speak, and a plugin that does not know it answers so.
package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// ifName is the interface that a pod gets. CRI knows but one.
const ifName = "eth0"

var (
	// ErrNotReady: no pod can be connected now; the text says why.
	ErrNotReady = errors.New("network is not ready")
	// ErrUnanswered comes with ErrNotReady where the plugins have just been asked for their status; ask again shortly.
	ErrUnanswered = errors.New("its plugins have not answered STATUS yet")
	// ErrInvalid marks a request that no configuration can satisfy.
	ErrInvalid = errors.New("invalid network request")
	// ErrAttached: the sandbox is connected, or was half connected, and has to be detached first.
	ErrAttached = errors.New("sandbox is attached already")
	// ErrPluginNotFound: a plugin of the chain is in none of the folders.
	ErrPluginNotFound = errors.New("CNI plugin not found")
)

// Config says where things are and how long they may take.
type Config struct {
	// ConfDir holds *.conflist, *.conf and *.json; the first valid one in name order is used. It may come later.
	ConfDir string
	// BinDirs are searched for plugins in order.
	BinDirs []string
	// CacheDir remembers the attachments. It belongs to one daemon.
	CacheDir string
	// ForeignCacheDirs are libcni caches of other runtimes on this node. A network that they use too is
	// not garbage-collected as a whole, for their pods are unknown here.
	ForeignCacheDirs []string
	// AddTimeout and DelTimeout bound the whole chain. Each plugin of a DEL is sure of its share.
	AddTimeout, DelTimeout time.Duration
	// CheckTimeout bounds the chain of a CHECK, a STATUS and a GC.
	CheckTimeout time.Duration
	// Ran, if set, is told how long each run of a plugin took; err is nil, or how it failed. It must not block.
	Ran func(ctx context.Context, plugin, verb string, took time.Duration, err error)
	// MissingGrace is how long after the first failed DEL a plugin whose binary is nowhere keeps a sandbox from
	// being detached. Without an end, removing a network provider would make its pods undeletable.
	MissingGrace time.Duration
}

// Default is the configuration of an ordinary node.
func Default() Config {
	return Config{
		ConfDir:          "/etc/cni/net.d",
		BinDirs:          []string{"/opt/cni/bin", "/usr/lib/cni"},
		CacheDir:         "/var/lib/berth/network",
		ForeignCacheDirs: []string{"/var/lib/cni"},
		AddTimeout:       60 * time.Second,
		DelTimeout:       60 * time.Second,
		CheckTimeout:     10 * time.Second,
		MissingGrace:     5 * time.Minute,
	}
}

// Validate touches nothing.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.ConfDir) || !filepath.IsAbs(c.CacheDir) {
		return fmt.Errorf("network: conf_dir %q and cache folder %q must be absolute paths", c.ConfDir, c.CacheDir)
	}
	if len(c.BinDirs) == 0 {
		return errors.New("network: bin_dirs is empty")
	}
	for _, d := range c.BinDirs {
		if !filepath.IsAbs(d) {
			return fmt.Errorf("network: bin_dirs: %q is not an absolute path", d)
		}
	}
	for _, d := range []time.Duration{c.AddTimeout, c.DelTimeout, c.CheckTimeout} {
		if d <= 0 {
			return fmt.Errorf("network: a timeout of %s", d)
		}
	}
	if c.MissingGrace < 0 {
		return fmt.Errorf("network: a grace period of %s", c.MissingGrace)
	}
	return nil
}

// Network is safe for concurrent use; calls for one sandbox must follow each other.
type Network struct {
	cfg    Config
	log    *slog.Logger
	daemon string // tells what this process began from what an earlier one did
	run    runner
	cache  cache
	gate   gate
	health health

	current atomic.Pointer[snapshot]
	watch   *watcher // nil: the kernel gave none, the folder is read on demand

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup
}

// New reads the configuration and begins to watch for changes. That there is none yet is no error: see Ready.
func New(cfg Config, log *slog.Logger) (*Network, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cache, err := openCache(cfg.CacheDir)
	if err != nil {
		return nil, err
	}
	n := &Network{cfg: cfg, log: log, daemon: rand.Text(), cache: cache, run: runner{dirs: cfg.BinDirs, log: log, ran: cfg.Ran}}
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.watch, err = newWatcher(cfg.ConfDir)
	if err != nil {
		log.Warn("CNI configuration is not watched, it is read again on demand", "dir", cfg.ConfDir, "error", err)
	}
	n.reload()
	if n.watch != nil {
		n.work.Go(func() { n.watch.loop(n.ctx, n.reload) })
	}
	return n, nil
}

// Close ends the watching and plugins that are asked for their status. Attachments stay. No other call may overlap it.
func (n *Network) Close() error {
	n.stop()
	n.work.Wait()
	if n.watch == nil {
		return nil
	}
	return n.watch.close()
}

// Info is what Status tells of the network.
type Info struct {
	ConfDir string   `json:"confDir"`
	BinDirs []string `json:"binDirs"`
	File    string   `json:"file,omitempty"`
	Name    string   `json:"name,omitempty"`
	Version string   `json:"cniVersion,omitempty"`
	Plugins []string `json:"plugins,omitempty"`
	// Invalid says which files come first by name but cannot be used, and why.
	Invalid []string `json:"invalid,omitempty"`
}

// Info describes the configuration in use.
func (n *Network) Info() Info {
	s := n.snapshot()
	info := Info{ConfDir: n.cfg.ConfDir, BinDirs: n.cfg.BinDirs, File: s.file}
	for _, err := range s.invalid {
		info.Invalid = append(info.Invalid, err.Error())
	}
	if s.list != nil {
		info.Name, info.Version, info.Plugins = s.list.Name, s.list.CNIVersion, pluginTypes(s.list)
	}
	return info
}

// rereadAfter is how old a configuration may be that nobody watches.
const rereadAfter = time.Second

func (n *Network) snapshot() *snapshot {
	s := n.current.Load()
	if n.watch == nil && time.Since(s.read) > rereadAfter {
		n.reload()
		s = n.current.Load()
	}
	return s
}

// reload replaces the snapshot where the folder says something else now. Its one caller at a time is the watcher's
// goroutine; without a watcher two may overlap, and either result is fresh.
func (n *Network) reload() {
	next, before := readConfDir(n.cfg.ConfDir), n.current.Load()
	if before != nil && before.same(next) {
		if n.watch == nil {
			next.generation = before.generation
			n.current.Store(next)
		}
		return
	}
	if before != nil {
		next.generation = before.generation + 1
	}
	n.current.Store(next)
	n.announce(next)
	if n.watch != nil && next.list != nil && n.watch.alsoWatch(filepath.Join(n.cfg.ConfDir, next.list.Name)) {
		n.reload() // what changed before the folder was watched
	}
}

func (n *Network) announce(next *snapshot) {
	for _, err := range next.invalid {
		n.log.Warn("CNI configuration cannot be used", "error", err)
	}
	if next.list == nil {
		n.log.Warn("no CNI configuration, pods cannot be connected", "dir", n.cfg.ConfDir)
		return
	}
	n.log.Info("CNI configuration in use", "file", next.file, "network", next.list.Name, "version", next.list.CNIVersion,
		"plugins", pluginTypes(next.list))
}

// gate keeps a GC of the network and the ADDs apart: what a GC is not told of, it frees.
type gate struct {
	mu         sync.Mutex
	adding     int
	collecting chan struct{} // closed when the GC is over
}

// enter waits for a GC that is under way.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		wait := g.collecting
		if wait == nil {
			g.adding++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return fmt.Errorf("wait for the network's garbage collection: %w", context.Cause(ctx))
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.adding--
}

// tryCollect answers false while pods are being connected.
func (g *gate) tryCollect() (done func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.adding > 0 || g.collecting != nil {
		return nil, false
	}
	over := make(chan struct{})
	g.collecting = over
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.collecting = nil
		close(over)
	}, true
}

// makePrivate creates dir for root alone, whatever the umask.
func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create folder: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("create folder: %w", err)
	}
	return nil
}
