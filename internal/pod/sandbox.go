// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/selinux"
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
	// checkpoints are operations beside the others, as a container's are.
	checkpoints ops
	// broughtIPC: a container was restored, and with it the IPC objects of the pod.
	broughtIPC atomic.Bool
	plan       *step.Plan
	ending     ending
	// sandboxContainer is the record's.
	sandboxContainer bool

	// inCgroup: it lives in its cgroup parent, and can take it over. Guarded by Manager.cgroups.mu.
	inCgroup bool

	status atomic.Pointer[SandboxStatus]
	// feed is what statuses are published through, the containers' too.
	feed *feed

	ledger[sandboxRecord, *sandboxRecord]
	// Guarded by mu, like the facts.
	shim   Shim           // nil: none, or gone
	result network.Result // of the network step, until the record has it
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
	OwnCgroup bool `json:"own_cgroup"`
	// SELinux has the labels of the pod's files and, unless they are asked to be others, processes.
	SELinux selinux.Labels `json:"selinux,omitzero"`
	// Checkpoint is the folder of an unfinished checkpoint that is being made; empty: none is. Containers stand still for a part of that time.
	Checkpoint string `json:"checkpoint,omitempty"`
	// RestoredFrom is the folder of the checkpoint that RestorePod has made it from.
	RestoredFrom string   `json:"restored_from,omitempty"`
	Begun        []string `json:"begun"`
}

func (r *sandboxRecord) begun() *[]string { return &r.Begun }

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
	s := &Sandbox{ID: rec.ID, Handler: rec.Handler, Config: config, m: m, sandboxContainer: rec.SandboxContainer, ending: ending{c: make(chan struct{})},
		paths: m.sandboxPaths(rec.ID, namespaces(config), userNS != nil), userNS: userNS}
	s.rec, s.object, s.path, s.header, s.publish = rec, s, s.paths.record, m.header(sandboxKind, sandboxVersion), s.show
	s.log = m.log.With("sandbox", rec.ID, "pod", md.GetNamespace()+"/"+md.GetName())
	s.feed = m.events.newFeed(rec.ID)
	s.inCgroup = slices.Contains(rec.Begun, stepCgroup)
	s.plan = s.newPlan()
	s.ops = ops{object: s.String(), stage: s.plan.Stage, work: &m.work, log: s.log}
	s.checkpoints = ops{object: s.String(), stage: func() string { return "" }, work: &m.work, log: s.log}
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

// show makes the facts visible. Preconditions: s.mu is held, or s is not shared yet.
func (s *Sandbox) show() {
	r := &s.rec
	st := &SandboxStatus{ID: s.ID, Handler: s.Handler, Config: s.Config, CreatedAt: r.CreatedAt, StoppedAt: r.StoppedAt, Why: r.Why,
		Ready: r.ReadyAt != 0 && r.StoppedAt == 0 && r.RemovedAt == 0, Hidden: s.removed || r.ReadyAt == 0 && r.StoppedAt == 0,
		CgroupParent: r.CgroupParent, Netns: s.paths.pins.Net, Resources: r.Resources, Overhead: r.Overhead}
	if st.Ready {
		st.IPs = r.IPs
	}
	s.feed.publishSandbox(&s.status, st)
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
		CgroupParent: s.facts().CgroupParent, Annotations: maps.Clone(s.Config.GetAnnotations()), OwnStack: s.sandboxContainer,
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
