// SPDX-License-Identifier: Apache-2.0

// Package pod is the domain: pod sandboxes and their containers, from request through exit and crash to
// removal. cri is its only caller (and daemon, which builds it). It knows no wire format but stores the CRI configs that
// it was given verbatim as desired state; what is true now it derives from facts.
//
// A sandbox, and a container:
//
//	        RunSandbox                    StopSandbox, shim lost
//	none ─────────────► (creating, hidden) ─► READY ─────────────► NOTREADY ─► removed
//	                        └─ failed: rolled back, none again
//
//	     CreateContainer    StartContainer    exit, StopContainer
//	none ─────────────► CREATED ──────► RUNNING ──────────────► EXITED ─► removed
//	                        └── start failed: EXITED (StartError) ┘
package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-run/berth/internal/telemetry"
)

// Config is what a Manager must know of the node; daemon fills it.
type Config struct {
	Root  string // durable state, for example /var/lib/berth
	State string // state that a reboot clears, for example /run/berth
	// NetnsDir is where network namespaces are pinned, for example /run/netns.
	NetnsDir string
	// CgroupDriver is "cgroupfs" or "systemd"; CgroupParent holds pods that name no parent of their own.
	CgroupDriver, CgroupParent string
	DefaultHandler             string
	// CgroupfsHandlers are the runtime handlers that make containers' cgroups themselves, in the pod's, also where CgroupDriver is "systemd".
	CgroupfsHandlers []string
	// PauseBinary is the static berth-shim, which is PID 1 of pods with a shared PID namespace.
	PauseBinary string
	// Boot is the kernel's boot ID.
	Boot string
	// ExecOutputLimit bounds each of ExecSync's stdout and stderr, in bytes.
	ExecOutputLimit int64
	// ShimTimeout bounds how long a start-up waits for one shim; ShimPatience how long the background goes on with a shim that is alive
	// and silent, before it counts as wedged and is killed with its pod.
	ShimTimeout, ShimPatience time.Duration
	// Traced: requests may carry spans.
	Traced bool
}

// Parts are the capabilities that a Manager works with.
type Parts struct {
	Runtime Runtime
	Network Network
	Images  Images
	Host    Host
	Specs   Specs
	// Labels may be nil: the kernel has none.
	Labels Labels
	// Hooks may be nil: nobody listens.
	Hooks Hooks
	// Observer may be nil: nobody measures.
	Observer Observer
	// Ended, if set, is told when a container has exited or a sandbox has stopped, perhaps more than once. It must not block.
	Ended func(id string)
}

// Manager owns all sandboxes and containers of the node.
type Manager struct {
	cfg   Config
	parts Parts
	log   *slog.Logger

	// life ends when the daemon shuts down: it stops watching, not the pods.
	life context.Context
	end  context.CancelFunc
	work inFlight
	// laterSlots bounds the clean-ups of earlier lives that run side by side.
	laterSlots chan struct{}
	events     *hub
	// abandoned counts the work that nobody waits for.
	abandoned atomic.Int32

	cgroups    cgroupParents
	mu         sync.RWMutex // guards the maps; held for look-ups only
	sandboxes  map[string]*Sandbox
	containers map[string]*Container
	names      map[string]string // a sandbox's or container's unique name → its ID
}

// New makes a Manager without any sandbox; Recover then finds those of earlier lives.
func New(cfg Config, parts Parts, log *slog.Logger) *Manager {
	m := &Manager{cfg: cfg, parts: parts, log: log, laterSlots: make(chan struct{}, 8), events: newHub(),
		sandboxes: map[string]*Sandbox{}, containers: map[string]*Container{}, names: map[string]string{}}
	m.life, m.end = context.WithCancel(context.Background())
	return m
}

// Close stops watching and waits until operations in flight have ended or ctx has. Pods run on.
func (m *Manager) Close(ctx context.Context) error {
	m.end()
	m.EndEvents()
	select {
	case <-m.work.close():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shut down: operations in flight are left to the next start: %w", context.Cause(ctx))
	}
}

func (m *Manager) ended(id string) {
	if m.parts.Ended != nil {
		m.parts.Ended(id)
	}
}

// timed makes a span of each of a plan's stages and tells the observer how long it took.
func (m *Manager) timed(object string) func(ctx context.Context, stage string, release bool) (context.Context, func(error)) {
	if m.parts.Observer == nil && !m.cfg.Traced {
		return nil
	}
	return func(ctx context.Context, stage string, release bool) (context.Context, func(error)) {
		verb := "set up"
		if release {
			verb = "release"
		}
		ctx, span := telemetry.Start(ctx, verb, object, stage)
		begin := time.Now()
		return ctx, func(err error) {
			if o := m.parts.Observer; o != nil {
				o.Stage(ctx, object, stage, release, time.Since(begin), err)
			}
			span.End(err)
		}
	}
}

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails, since Go 1.24
	return hex.EncodeToString(b[:])
}

// CheckHandler tells whether a runtime handler is configured; the empty name is the default one. ErrInvalid.
func (m *Manager) CheckHandler(name string) error {
	if name != "" && !m.parts.Runtime.HasHandler(name) {
		return fmt.Errorf("runtime handler %q is not configured; there is %s: %w", name, strings.Join(m.parts.Runtime.Handlers(), ", "), ErrInvalid)
	}
	return nil
}

// SandboxByID finds a sandbox by its ID or an unambiguous beginning of it. Sandboxes still being created are not found.
func (m *Manager) SandboxByID(id string) (*Sandbox, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s, err := find(m.sandboxes, "sandbox", id)
	if err == nil && s.Status().Hidden {
		return nil, fmt.Errorf("sandbox id %.80q: %w", id, ErrNotFound)
	}
	return s, err
}

// ContainerByID finds a container by its ID or an unambiguous beginning of it.
func (m *Manager) ContainerByID(id string) (*Container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c, err := find(m.containers, "container", id)
	if err == nil && c.Status().Hidden {
		return nil, fmt.Errorf("container id %.80q: %w", id, ErrNotFound)
	}
	return c, err
}

func find[T any](all map[string]T, what, id string) (T, error) {
	var found T
	if o, ok := all[id]; ok {
		return o, nil
	}
	if id == "" {
		return found, fmt.Errorf("%s id is empty: %w", what, ErrInvalid)
	}
	n := 0
	for full, o := range all {
		if strings.HasPrefix(full, id) {
			found = o
			n++
		}
	}
	switch n {
	case 0:
		return found, fmt.Errorf("%s id %.80q: %w", what, id, ErrNotFound)
	case 1:
		return found, nil
	}
	var none T
	return none, fmt.Errorf("%s id %q: %d IDs begin so, give more characters: %w", what, id, n, ErrInvalid)
}

// Sandboxes lists the status of every sandbox that is not still being created.
func (m *Manager) Sandboxes() []*SandboxStatus {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*SandboxStatus, 0, len(m.sandboxes))
	for _, s := range m.sandboxes {
		if st := s.Status(); !st.Hidden {
			all = append(all, st)
		}
	}
	return all
}

// Containers lists the status of every container that is not still being created.
func (m *Manager) Containers() []*ContainerStatus {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*ContainerStatus, 0, len(m.containers))
	for _, c := range m.containers {
		if st := c.Status(); !st.Hidden {
			all = append(all, st)
		}
	}
	return all
}

// ImagesInUse lists the IDs of images that containers were made from or mount.
func (m *Manager) ImagesInUse() map[string]bool {
	used := map[string]bool{}
	for _, c := range m.Containers() {
		used[c.ImageID] = true
		for _, id := range c.MountImages {
			used[id] = true
		}
	}
	return used
}

func (m *Manager) podsDir() string   { return filepath.Join(m.cfg.Root, "pods") }
func (m *Manager) statesDir() string { return filepath.Join(m.cfg.State, "pods") }
