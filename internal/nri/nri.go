// SPDX-License-Identifier: Apache-2.0

// Package nri lets Node Resource Interface plugins see the life of pods and containers, and change or refuse it. It is the only package
// that knows NRI's types; pod calls it through the interface pod.Hooks, daemon builds it.
//
// Plugins come in two ways: those in a folder are started with the daemon, others connect to a socket. Either way a plugin is first
// synchronized, that is told of all pods and containers there are, and then called at every step of their lives, one plugin after
// the other in the order of their indices. A plugin that does not answer in time, or whose connection breaks, is dropped and the request
// goes on without it, unless it is a required one: then the request fails. What a plugin answers with an error always fails the request,
// except where things end: nothing keeps a pod from being stopped and removed.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/adaptation/builtin"
	validator "github.com/containerd/nri/plugins/default-validator"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-run/berth/internal/linux/sock"
)

var (
	// ErrRefused: a plugin, or a rule about plugins, refused the request.
	ErrRefused = errors.New("refused by NRI")
	// ErrRequired: a plugin that is required is not there or did not answer. It may come back.
	ErrRequired = errors.New("required NRI plugin is not available")
)

// Config says where plugins come from and what is demanded of them.
type Config struct {
	// Socket is where plugins connect; empty: they cannot.
	Socket string
	// PluginDir holds plugins that are started with the daemon, ConfigDir their configurations. Missing folders are empty ones.
	PluginDir, ConfigDir string
	// RegistrationTimeout bounds how long a new plugin may take to register, RequestTimeout how long to answer one request.
	RegistrationTimeout, RequestTimeout time.Duration
	// Required plugins, by name with or without index, must have had their say in every creation of a container; pods in the
	// namespaces of Exempt, such as the one that the plugins themselves run in, do not need them.
	Required, Exempt []string
	// Tolerate is the key of an annotation by which a pod, or one of its containers, goes on without them; empty: there is none.
	Tolerate string
	// Reject names what no plugin may adjust: the keys of Rejectable.
	Reject []string
	// Version is Berth's.
	Version string
	// InjectCDI adds CDI devices, which plugins ask for by name, to a spec; nil: such requests fail.
	InjectCDI func(s *specs.Spec, names []string) error
	// BlockIO and RDT tell what a class means that a plugin chooses; nil: such requests fail.
	BlockIO func(class string) (*specs.LinuxBlockIO, error)
	RDT     func(class string) (*specs.LinuxIntelRdt, error)
}

// Node is what plugins are told about and act on. Implementation: pod.Manager.
type Node interface {
	// HookState lists all pods and containers that are not still being created.
	HookState() ([]Pod, []Container)
	// HookUpdate changes resources of containers and returns the updates that failed, with the error of those that may not.
	HookUpdate(ctx context.Context, updates []Update) (failed []Update, err error)
	// HookEvict stops a container because a plugin wants it gone.
	HookEvict(ctx context.Context, container, reason string) error
}

// NRI calls plugins. Its methods may be called from any goroutine.
type NRI struct {
	cfg  Config
	log  *slog.Logger
	node Node
	lib  *adaptation.Adaptation
	// rules are the built-in validator's.
	rules *validator.DefaultValidatorConfig
	// turn lets one request at a time go to the plugins, as the library does, but can be waited for with a context.
	turn chan struct{}
	// builtins of plugins are our own.
	plugins  atomic.Int64
	builtins int64
	calls    calls
}

// New makes an NRI that no plugin can reach before Start.
func New(cfg Config, log *slog.Logger) (*NRI, error) {
	rules, err := rulesOf(cfg)
	if err != nil {
		return nil, err
	}
	n := &NRI{cfg: cfg, log: log, rules: rules, turn: make(chan struct{}, 1), builtins: 1}
	adaptation.SetPluginRegistrationTimeout(cfg.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(cfg.RequestTimeout)
	options := []adaptation.Option{
		adaptation.WithPluginPath(cfg.PluginDir), adaptation.WithPluginConfigPath(cfg.ConfigDir), adaptation.WithSocketPath(cfg.Socket),
		adaptation.WithMetrics(&n.calls), adaptation.WithBuiltinPlugins(&builtin.BuiltinPlugin{Base: "default-validator", Index: "00",
			Handlers: builtin.BuiltinHandlers{ValidateContainerAdjustment: n.validate}}),
		adaptation.WithTTRPCOptions([]ttrpc.ClientOpts{n.peers},
			[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(n.takeEvictions)}),
	}
	n.calls.count = &n.plugins
	if cfg.Socket == "" {
		options = append(options, adaptation.WithDisabledExternalConnections())
	}
	lib, err := adaptation.New("berth", cfg.Version, n.synchronize, n.update, options...)
	if err != nil {
		return nil, fmt.Errorf("nri: %w", err)
	}
	n.lib = lib
	setLog(log) // now: its first line is an error about plugins that are not processes, which are left out on purpose
	return n, nil
}

// Start starts the plugins of the folder, then lets others connect. A plugin that does not start, or takes longer than its
// timeouts, is logged and left out. Errors: the socket is served by another program, the folder of plugins is not as it must be.
func (n *NRI) Start(node Node) error {
	n.node = node
	if n.cfg.Socket != "" {
		// The library would take it away from who serves it.
		if err := sock.ClearStale(n.cfg.Socket); errors.Is(err, sock.ErrServed) {
			return fmt.Errorf("nri: socket %s: %w; stop that one or set [nri] socket to another path", n.cfg.Socket, err)
		} else if err != nil {
			return fmt.Errorf("nri: socket %s: %w", n.cfg.Socket, err)
		}
	}
	if err := n.lib.Start(); err != nil {
		return fmt.Errorf("nri: %w", err)
	}
	if n.cfg.Socket != "" {
		// Who can connect decides what runs as root.
		if err := os.Chmod(n.cfg.Socket, 0o600); err != nil {
			n.lib.Stop()
			return fmt.Errorf("nri: socket: %w", err)
		}
	}
	return nil
}

// Stop ends the plugins that were started here and closes the socket.
func (n *NRI) Stop() { n.lib.Stop() }

// Active tells whether a plugin is there, or one is required: without, nobody need be called.
func (n *NRI) Active() bool { return n.plugins.Load() > n.builtins || len(n.cfg.Required) > 0 }

// Hold keeps new plugins from being synchronized until the returned function is called. Held from before a hook until what it is about
// can be listed, it makes sure that every plugin learns of every object exactly: by the hook or by its synchronization. What is done in
// between must not take long: everybody else waits behind a plugin that waits.
func (n *NRI) Hold() (release func()) { return n.lib.BlockPluginSync().Unblock }

// synchronize is the library's: it tells one plugin, or those of the folder, what there is.
func (n *NRI) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers := n.node.HookState()
	updates, err := tell(ctx, podMessages(pods), containerMessages(containers, n.log))
	if err != nil {
		return err
	}
	if len(updates) > 0 {
		failed, err := n.update(ctx, updates)
		n.log.InfoContext(ctx, "updates of a plugin's synchronization", "updates", len(updates), "failed", len(failed), "error", err)
	}
	return nil
}

// update is the library's: containers are changed that nobody asks for but a plugin.
func (n *NRI) update(ctx context.Context, updates []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.RequestTimeout)
	defer cancel()
	var failed []*adaptation.ContainerUpdate
	var todo []Update
	byID := map[string]*adaptation.ContainerUpdate{}
	for _, u := range updates {
		one, err := fromUpdate(u)
		if err != nil {
			n.log.WarnContext(ctx, "update asked for by a plugin", "container", u.GetContainerId(), "error", err)
			failed = append(failed, u)
			continue
		}
		byID[one.Container] = u
		todo = append(todo, one)
	}
	missed, err := n.node.HookUpdate(ctx, todo)
	for _, m := range missed {
		failed = append(failed, byID[m.Container])
	}
	return failed, err
}
