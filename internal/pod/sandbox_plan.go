// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/record"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/step"
)

// Names of a sandbox's steps.
const (
	stepState      = "state"
	stepNamespaces = "namespaces"
	stepNetwork    = "network"
	stepCgroup     = "cgroup"
	stepShm        = "shm"
	stepShim       = "shim"
	stepPause      = "pause"
)

const (
	// releaseTimeout bounds what a release may wait for a shim that does not answer before it is killed.
	releaseTimeout = 10 * time.Second
	// defaultShmSize is what containerd and CRI-O give /dev/shm, in bytes.
	defaultShmSize = 64 << 20
)

// newPlan lists what a sandbox holds. CNI, the shim's start and the rest run side by side.
func (s *Sandbox) newPlan() *step.Plan {
	steps := []step.Step{
		{Name: stepState, Acquire: s.makeState, Release: s.removeState},
		{Name: stepShim, After: []string{stepState}, Acquire: s.startShim, Release: s.stopShim},
		{Name: stepCgroup, After: []string{stepState}, Acquire: s.makeCgroup, Release: s.removeCgroup},
	}
	if s.paths.pins != (NamespacePins{}) {
		steps = append(steps, step.Step{Name: stepNamespaces, After: []string{stepState}, Acquire: s.makeNamespaces, Release: s.removeNamespaces})
	}
	if s.paths.pins.Net != "" {
		steps = append(steps, step.Step{Name: stepNetwork, After: []string{stepNamespaces}, Acquire: s.attach, Release: s.detach})
	}
	if s.paths.pins.IPC != "" {
		steps = append(steps, step.Step{Name: stepShm, After: []string{stepState}, Acquire: s.mountShm, Release: s.unmountShm})
	}
	if s.hasPause() {
		after := []string{stepShim, stepCgroup}
		if s.paths.pins != (NamespacePins{}) {
			after = append(after, stepNamespaces)
		}
		// A runtime with a network stack of its own takes it over when the pod's container starts.
		if s.sandboxContainer && s.paths.pins.Net != "" {
			after = append(after, stepNetwork)
		}
		steps = append(steps, step.Step{Name: stepPause, After: after, Acquire: s.startPause, Release: s.stopPause})
	}
	return &step.Plan{Object: s.String(), Steps: steps, Journal: s, Timed: s.m.timed("sandbox"), Passing: func() { record.Pass(s.paths.record) }}
}

// hasPause tells whether the pod has a container of its own: PID 1 of its shared PID namespace, or what its runtime wants to be joined.
// sandboxHandler is the handler whose sandbox container the others join; empty: there is none.
func (s *Sandbox) sandboxHandler() string {
	if !s.sandboxContainer {
		return ""
	}
	if s.Handler == "" {
		return s.m.cfg.DefaultHandler
	}
	return s.Handler
}

func (s *Sandbox) hasPause() bool { return s.paths.pid != "" || s.sandboxContainer }

func (s *Sandbox) makeState(context.Context) error {
	if err := os.MkdirAll(s.paths.ns, 0o700); err != nil {
		return err
	}
	if err := s.letIn(s.paths.state); err != nil {
		return err
	}
	if dir := s.Config.GetLogDirectory(); dir != "" {
		// The kubelet's folder, and it stays the kubelet's: made for callers that forgot to.
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("log_directory: %w", err)
		}
	}
	resolv, err := s.resolvConf()
	if err != nil {
		return err
	}
	for path, data := range map[string][]byte{s.paths.resolvConf: resolv, s.paths.hostname: []byte(s.hostname() + "\n")} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
		if err := s.give(path); err != nil {
			return err
		}
		if err := s.m.relabel(path, s.facts().SELinux.Mount); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sandbox) removeState(context.Context) error {
	// Whatever a crash left mounted below is ours: rootfs, shm, pins. Anything else below would be a bug, and
	// RemoveAll refuses to walk through a mount in any case.
	if err := s.m.parts.Host.UnmountBelow(s.paths.state); err != nil {
		return err
	}
	return mount.RemoveAll(s.paths.state)
}

// hostname is the pod's; with host network, the host's.
func (s *Sandbox) hostname() string {
	if name := s.Config.GetHostname(); name != "" && s.paths.pins.UTS != "" {
		return name
	}
	name, err := os.Hostname()
	if err != nil || s.paths.pins.UTS != "" {
		return s.ID[:12]
	}
	return name
}

// resolvConf renders the CRI's DNS config; without one the pod gets the host's file (CRI: DNSConfig).
func (s *Sandbox) resolvConf() ([]byte, error) {
	dns := s.Config.GetDnsConfig()
	if len(dns.GetServers())+len(dns.GetSearches())+len(dns.GetOptions()) == 0 {
		data, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	var b strings.Builder
	if searches := dns.GetSearches(); len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if options := dns.GetOptions(); len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return []byte(b.String()), nil
}

func (s *Sandbox) makeNamespaces(context.Context) error {
	return s.m.parts.Host.CreateNamespaces(s.namespaceRequest())
}

func (s *Sandbox) namespaceRequest() NamespaceRequest {
	r := NamespaceRequest{Pins: s.paths.pins, Sysctls: s.Config.GetLinux().GetSysctls(), UserNS: s.userNS}
	if s.paths.pins.UTS != "" {
		r.Hostname = s.hostname()
	}
	return r
}

func (s *Sandbox) removeNamespaces(context.Context) error {
	return s.m.parts.Host.RemoveNamespaces(s.paths.pins)
}

func (s *Sandbox) attach(ctx context.Context) error {
	result, err := s.m.parts.Network.Attach(ctx, s.attachment())
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.result = result
	s.mu.Unlock()
	return s.m.parts.Host.SetInterfaceSysctls(s.paths.pins.Net, s.Config.GetLinux().GetSysctls())
}

func (s *Sandbox) detach(ctx context.Context) error {
	return s.m.parts.Network.Detach(ctx, s.attachment())
}

func (s *Sandbox) mountShm(context.Context) error {
	if err := os.MkdirAll(s.paths.shm, 0o700); err != nil {
		return err
	}
	uid, gid := s.root()
	return s.m.parts.Host.MountShm(s.paths.shm, defaultShmSize, uid, gid, s.facts().SELinux.Mount)
}

func (s *Sandbox) unmountShm(context.Context) error { return s.m.parts.Host.Unmount(s.paths.shm) }

func (s *Sandbox) startShim(ctx context.Context) error {
	shim, err := s.m.parts.Runtime.StartShim(ctx, s.ID)
	if err != nil {
		return err
	}
	s.swapShim(shim)
	return nil
}

// stopShim ends the shim, by force where it does not answer: all its containers are gone by now.
func (s *Sandbox) stopShim(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if shim := s.swapShim(nil); shim != nil {
		err := shim.Shutdown(ctx, true)
		shim.Close()
		if err != nil {
			s.log.Warn("shim does not end when asked to and is killed", "error", err)
		}
	}
	return s.m.parts.Runtime.KillShim(context.WithoutCancel(ctx), s.ID)
}

// startPause runs the pod's PID 1 where its containers share one PID namespace, and pins that namespace.
func (s *Sandbox) startPause(ctx context.Context) error {
	rootfs := filepath.Join(s.paths.pauseBundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o700); err != nil {
		return err
	}
	// Its user is not root: it must be able to enter its own root folder. In a user namespace, not even the runtime is.
	for _, dir := range []string{s.paths.pauseBundle, rootfs} {
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	if err := s.give(rootfs); err != nil {
		return err
	}
	config, err := s.m.parts.Specs.Pause(SpecRequest{Sandbox: s.Config, SandboxID: s.ID, ContainerID: s.ID, Handler: s.Handler, Labels: s.facts().SELinux,
		CgroupsPath: s.cgroupsPath(s.ID), Paths: s.specPaths(rootfs)})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.paths.pauseBundle, "config.json"), config, 0o600); err != nil {
		return err
	}
	shim := s.theShim()
	uid, gid := s.root()
	if err := shim.Create(ctx, runtime.CreateTask{ID: s.ID, Bundle: s.paths.pauseBundle, Handler: s.Handler, IOUID: uint32(uid), IOGID: uint32(gid)}); err != nil {
		return err
	}
	pid, err := shim.Start(ctx, s.ID)
	if err != nil {
		return err
	}
	if s.paths.pid != "" {
		if err := s.m.parts.Host.PinPID(s.m.parts.Runtime.TaskPID(s.Handler, s.ID, pid), s.ID, s.paths.pid); err != nil {
			return err
		}
	}
	s.watchPause(shim)
	return nil
}

func (s *Sandbox) stopPause(ctx context.Context) error {
	if err := s.endTask(ctx, s.ID, s.paths.pauseBundle); err != nil {
		return err
	}
	if s.paths.pid != "" {
		if err := s.m.parts.Host.Unpin(s.paths.pid); err != nil {
			return err
		}
	}
	return mount.RemoveAll(s.paths.pauseBundle)
}

// endTask kills a task of the pod's shim and frees it, without the shim where that is gone.
func (s *Sandbox) endTask(ctx context.Context, id, bundle string) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	shim := s.theShim()
	if shim == nil {
		return s.m.parts.Runtime.KillLeftOver(context.WithoutCancel(ctx), s.Handler, id, bundle)
	}
	err := shim.Kill(ctx, id, sigkill, true)
	if err == nil {
		_, err = shim.Wait(ctx, id)
	}
	if err == nil || errors.Is(err, runtime.ErrNotFound) {
		err = shim.Delete(ctx, id)
	}
	if err == nil || errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	s.log.Warn("task does not end through its shim and is ended without it", "task", id, "error", err)
	return s.m.parts.Runtime.KillLeftOver(context.WithoutCancel(ctx), s.Handler, id, bundle)
}

// specPaths are what a container's spec refers to of the sandbox.
func (s *Sandbox) specPaths(rootfs string) SpecPaths {
	p := SpecPaths{Rootfs: rootfs, NetNS: s.paths.pins.Net, IPCNS: s.paths.pins.IPC, UTSNS: s.paths.pins.UTS, PIDNS: s.paths.pid, UserNS: s.paths.pins.User,
		ResolvConf: s.paths.resolvConf, Hostname: s.paths.hostname, PauseBinary: s.m.cfg.PauseBinary}
	if s.paths.pins.IPC != "" {
		p.Shm = s.paths.shm
	}
	return p
}

// cgroupsPath is the OCI cgroupsPath of one of the pod's containers.
func (s *Sandbox) cgroupsPath(id string) string {
	parent, driver := s.facts().CgroupParent, s.m.cfg.CgroupDriver
	if driver == cgroup.Systemd && slices.Contains(s.m.cfg.CgroupfsHandlers, s.Handler) {
		if folder, err := cgroup.ParentPath(cgroup.Systemd, parent); err == nil { // else it would have been refused
			return cgroup.ContainerPath(cgroup.Cgroupfs, folder, "berth", id)
		}
	}
	return cgroup.ContainerPath(driver, parent, "berth", id)
}

// cgroupParent is the cgroup that holds the pod's containers.
func (m *Manager) cgroupParent(c *runtimeapi.PodSandboxConfig, id string) string {
	if parent := c.GetLinux().GetCgroupParent(); parent != "" {
		return parent
	}
	if m.cfg.CgroupDriver == cgroup.Systemd {
		return strings.TrimSuffix(m.cfg.CgroupParent, ".slice") + "-" + id + ".slice"
	}
	return filepath.Join("/", m.cfg.CgroupParent, id)
}
