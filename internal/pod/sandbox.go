// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/network"
	"github.com/berth-run/berth/internal/record"
	"github.com/berth-run/berth/internal/spec"
	"github.com/berth-run/berth/internal/step"
)

// Sandbox is one pod's sandbox. Its methods may be called from any goroutine.
type Sandbox struct {
	ID      string
	Handler string
	// Config is what RunPodSandbox asked for; nobody changes it.
	Config *runtimeapi.PodSandboxConfig

	m     *Manager
	paths sandboxPaths
	// userNS is the pod's user namespace, at paths.pins.User; nil: the host's.
	userNS *spec.UserNamespace
	ops    ops
	plan   *step.Plan
	log    *slog.Logger
	// sandboxContainer is the record's.
	sandboxContainer bool

	// leftCgroup: it has decided about its cgroup parent, and does not take it over any more. Guarded by Manager.cgroups.
	leftCgroup bool

	status atomic.Pointer[SandboxStatus]
	// feed is what statuses are published through, the containers' too.
	feed *feed

	mu      sync.Mutex // guards all below, and orders the writes of the record; never held for anything else that blocks
	rec     sandboxRecord
	removed bool
	shim    Shim           // nil: none, or gone
	result  network.Result // of the network step, until the record has it
}

// sandboxRecord is a sandbox's durable facts. Times are Unix nanoseconds; 0 means not yet.
type sandboxRecord struct {
	ID      string          `json:"id"`
	Handler string          `json:"handler"`
	Config  json.RawMessage `json:"config"`
	// SandboxContainer: the handler wanted a container for the pod itself when the pod was made.
	SandboxContainer bool `json:"sandbox_container,omitempty"`

	CreatedAt int64 `json:"created_at"`
	ReadyAt   int64 `json:"ready_at"`
	// StoppedAt is when it ceased to be ready; Why says so where nobody asked for it.
	StoppedAt int64  `json:"stopped_at"`
	Why       string `json:"why,omitempty"`
	// RemovedAt is when its removal began: a start-up ends what is left of it.
	RemovedAt int64 `json:"removed_at"`

	IPs          []netip.Addr `json:"ips,omitempty"`
	CgroupParent string       `json:"cgroup_parent"`
	// Resources and Overhead are those of the last UpdatePodSandboxResources; empty: those of the config.
	Resources json.RawMessage `json:"resources,omitempty"`
	Overhead  json.RawMessage `json:"overhead,omitempty"`
	// OwnCgroup: the parent cgroup was not there before, so it goes with the sandbox.
	OwnCgroup bool     `json:"own_cgroup"`
	Begun     []string `json:"begun"`
}

const (
	sandboxKind    = "sandbox"
	sandboxVersion = 1
)

// SandboxStatus is what is true of a sandbox at one instant. It is never changed.
type SandboxStatus struct {
	ID, Handler string
	Config      *runtimeapi.PodSandboxConfig
	Ready       bool
	// Hidden: still being created, not to be listed.
	Hidden    bool
	CreatedAt int64
	StoppedAt int64
	// Why says what ended a sandbox that nobody stopped.
	Why string
	// IPs of the pod, the primary first; none with host network or once stopped.
	IPs          []netip.Addr
	CgroupParent string
	Netns        string // path of the network namespace; empty for the host's
	// Resources and Overhead of the pod as a whole, the CRI's JSON; empty: as in Config.
	Resources, Overhead json.RawMessage
}

type sandboxPaths struct {
	record, dir, state           string
	ns                           string
	pins                         NamespacePins
	pid                          string
	shm, resolvConf, hostname    string
	pauseBundle, containerRecord string
}

func (m *Manager) sandboxPaths(id string, ns *runtimeapi.NamespaceOption, ownUser bool) sandboxPaths {
	dir, state := filepath.Join(m.podsDir(), id), filepath.Join(m.statesDir(), id)
	p := sandboxPaths{dir: dir, state: state, record: filepath.Join(dir, "sandbox.json"), containerRecord: filepath.Join(dir, "containers"),
		ns: filepath.Join(state, "ns"), shm: filepath.Join(state, "shm"), resolvConf: filepath.Join(state, "resolv.conf"),
		hostname: filepath.Join(state, "hostname"), pauseBundle: filepath.Join(state, id)}
	if ns.GetNetwork() != runtimeapi.NamespaceMode_NODE {
		p.pins.Net = m.netnsPath(id)
		p.pins.UTS = filepath.Join(p.ns, "uts") // the host name belongs to the network: CRI has no mode of its own for it
	}
	if ns.GetIpc() != runtimeapi.NamespaceMode_NODE {
		p.pins.IPC = filepath.Join(p.ns, "ipc")
	}
	if ownUser {
		p.pins.User = filepath.Join(p.ns, "user")
	}
	if ns.GetPid() == runtimeapi.NamespaceMode_POD {
		p.pid = filepath.Join(p.ns, "pid")
	}
	return p
}

func (m *Manager) netnsPath(id string) string { return filepath.Join(m.cfg.NetnsDir, "berth-"+id) }

func namespaces(c *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// newSandbox wires a sandbox around its record.
func (m *Manager) newSandbox(rec sandboxRecord, config *runtimeapi.PodSandboxConfig) *Sandbox {
	md, userNS := config.GetMetadata(), spec.UserNamespaceOf(config)
	s := &Sandbox{ID: rec.ID, Handler: rec.Handler, Config: config, m: m, rec: rec, sandboxContainer: rec.SandboxContainer,
		paths: m.sandboxPaths(rec.ID, namespaces(config), userNS != nil), userNS: userNS,
		log: m.log.With("sandbox", rec.ID, "pod", md.GetNamespace()+"/"+md.GetName())}
	s.feed = m.events.newFeed(rec.ID)
	s.plan = s.newPlan()
	s.ops = ops{object: s.String(), stage: s.plan.Stage, work: &m.work, log: s.log}
	s.publish()
	return s
}

// String names the sandbox in errors: by its ID, for tools, and by the pod's name, for people.
func (s *Sandbox) String() string {
	md := s.Config.GetMetadata()
	return fmt.Sprintf("sandbox %s (%s/%s)", s.ID, md.GetNamespace(), md.GetName())
}

// Status is a snapshot; it never waits.
func (s *Sandbox) Status() *SandboxStatus { return s.status.Load() }

// publish makes the facts visible. Preconditions: s.mu is held, or s is not shared yet.
func (s *Sandbox) publish() {
	r := &s.rec
	st := &SandboxStatus{ID: s.ID, Handler: s.Handler, Config: s.Config, CreatedAt: r.CreatedAt, StoppedAt: r.StoppedAt, Why: r.Why,
		Ready: r.ReadyAt != 0 && r.StoppedAt == 0 && r.RemovedAt == 0, Hidden: s.removed || r.ReadyAt == 0 && r.StoppedAt == 0,
		CgroupParent: r.CgroupParent, Netns: s.paths.pins.Net, Resources: r.Resources, Overhead: r.Overhead}
	if st.Ready {
		st.IPs = r.IPs
	}
	s.feed.publishSandbox(&s.status, st)
}

// update changes the facts: on disk first, then in memory. When the disk refuses, nothing changes.
func (s *Sandbox) update(f func(*sandboxRecord)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.rec
	next.Begun = slices.Clone(next.Begun)
	f(&next)
	if s.removed {
		return fmt.Errorf("%s: %w", s, errGone)
	}
	if err := record.Write(s.paths.record, s.m.header(sandboxKind, sandboxVersion), next); err != nil {
		return err
	}
	s.rec = next
	s.publish()
	return nil
}

// learn is update for facts that are true whether the disk takes them or not.
func (s *Sandbox) learn(f func(*sandboxRecord)) {
	if err := s.update(f); err != nil && !errors.Is(err, errGone) {
		s.log.Error("fact is kept in memory only", "error", err)
		s.mu.Lock()
		defer s.mu.Unlock()
		f(&s.rec)
		s.publish()
	}
}

func (s *Sandbox) facts() sandboxRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec
}

// Begun, Begin and End make the record the plan's journal.
func (s *Sandbox) Begun() []string { return s.facts().Begun }

// Begin implements step.Journal.
func (s *Sandbox) Begin(steps ...string) error {
	return s.update(func(r *sandboxRecord) { r.Begun = with(r.Begun, steps...) })
}

// End implements step.Journal.
func (s *Sandbox) End(steps ...string) error {
	return s.update(func(r *sandboxRecord) { r.Begun = without(r.Begun, steps...) })
}

func with(list []string, names ...string) []string {
	for _, n := range names {
		if !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

func without(list []string, names ...string) []string {
	return slices.DeleteFunc(list, func(s string) bool { return slices.Contains(names, s) })
}

func (m *Manager) header(kind string, version int) record.Header {
	return record.Header{Kind: kind, Version: version, Boot: m.cfg.Boot}
}

// theShim is the connection to the pod's shim, or nil.
func (s *Sandbox) theShim() Shim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shim
}

// swapShim sets the connection and returns the one before.
func (s *Sandbox) swapShim(shim Shim) Shim {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.shim
	s.shim = shim
	return old
}

// Containers lists the sandbox's containers, also those still being created.
func (s *Sandbox) containers() []*Container {
	s.m.mu.RLock()
	defer s.m.mu.RUnlock()
	var all []*Container
	for _, c := range s.m.containers {
		if c.sandbox == s {
			all = append(all, c)
		}
	}
	return all
}

func sandboxName(c *runtimeapi.PodSandboxConfig) string {
	md := c.GetMetadata()
	return fmt.Sprintf("sandbox\x00%s\x00%s\x00%s\x00%d", md.GetNamespace(), md.GetName(), md.GetUid(), md.GetAttempt())
}

// attachment is what the network must know of the sandbox; with a gone namespace it serves to detach.
func (s *Sandbox) attachment() network.Attachment {
	md, dns := s.Config.GetMetadata(), s.Config.GetDnsConfig()
	a := network.Attachment{ID: s.ID, Name: md.GetName(), Namespace: md.GetNamespace(), UID: md.GetUid(), NetnsPath: s.paths.pins.Net,
		CgroupParent: s.facts().CgroupParent, Annotations: maps.Clone(s.Config.GetAnnotations()),
		DNS: network.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}}
	for _, p := range s.Config.GetPortMappings() {
		a.PortMappings = append(a.PortMappings, network.PortMapping{HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(),
			Protocol: p.GetProtocol().String(), HostIP: p.GetHostIp()})
	}
	return a
}

func encodeConfig(c *runtimeapi.PodSandboxConfig) (json.RawMessage, error) {
	raw, err := protojson.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode sandbox config: %w: %w", ErrInvalid, err)
	}
	return raw, nil
}
