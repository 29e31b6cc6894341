// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cdi"
	"github.com/berth-run/berth/internal/config"
	"github.com/berth-run/berth/internal/hooksd"
	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/apparmor"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/linux/user"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/qos"
	"github.com/berth-run/berth/internal/spec"
)

// specMaker implements pod.Specs: it looks up what the pure package spec must be told.
type specMaker struct {
	host spec.Host
	// deviceOwnership: devices belong to run_as_user and run_as_group, not to whom they belong on the host.
	deviceOwnership bool
	// handlers are the policies of the runtime handlers, by name.
	handlers map[string]handlerPolicy
	profiles profiles
	cdi      *cdi.Devices
	// cdiAnnotations: annotations may name CDI devices, too.
	cdiAnnotations bool
	classes        *qos.Classes
	// hooks are directories with OCI hooks.
	hooks   []string
	clamped *sync.Once
	// can tells what a runtime handler, or the default one (""), can do on this kernel.
	can func(handler string) abilities
	log *slog.Logger
}

// handlerPolicy is what the configuration says of one runtime handler's containers.
type handlerPolicy struct {
	// withoutHostDevices: privileged containers get no devices but those that are asked for.
	withoutHostDevices bool
	// podAnnotations and containerAnnotations are patterns of the keys that the OCI runtime gets to see.
	podAnnotations, containerAnnotations []string
	// privileged: whether privileged containers are taken.
	privileged bool
	// rlimits are its containers' own.
	rlimits []spec.Rlimit
}

func newSpecMaker(facts spec.Host, c *config.Config, can func(handler string) abilities, log *slog.Logger) (specMaker, error) {
	classes, err := qos.Open(qos.Config{BlockIO: c.QoS.BlockIO, RDT: c.QoS.RDT}, log)
	if err != nil {
		return specMaker{}, fmt.Errorf("[qos]: %w", err)
	}
	if err := hooksd.Check(c.Hooks.Dirs); err != nil {
		return specMaker{}, fmt.Errorf("[hooks] dirs: %w", err)
	}
	m := specMaker{host: facts, hooks: c.Hooks.Dirs, deviceOwnership: c.DeviceOwnership, handlers: map[string]handlerPolicy{}, profiles: apparmor.New(),
		cdi: cdi.New(c.CDI.SpecDirs), cdiAnnotations: c.CDI.Annotations, classes: classes, clamped: &sync.Once{}, can: can, log: log}
	for name, r := range c.Runtimes {
		p := handlerPolicy{r.PrivilegedWithoutHostDevices, r.PodAnnotations, r.ContainerAnnotations, r.Privileged, nil}
		for _, text := range r.Rlimits {
			if l, err := config.ParseRlimit(text); err == nil { // an error was found when the configuration was checked
				p.rlimits = append(p.rlimits, spec.Rlimit{Type: l.Name, Soft: l.Soft, Hard: l.Hard})
			}
		}
		m.handlers[name] = p
	}
	return m, nil
}

func (m specMaker) ValidateSandbox(c *runtimeapi.PodSandboxConfig, handler string) error {
	if err := spec.ValidateSandbox(c); err != nil {
		return err
	}
	if spec.UserNamespaceOf(c) != nil {
		if why := m.can(handler).withoutUserNamespaces; why != nil {
			return fmt.Errorf("linux.security_context.namespace_options.userns_options: user namespaces: %w: %w", pod.ErrUnsupported, why)
		}
	}
	ns := c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	own := func(m runtimeapi.NamespaceMode) bool { return m != runtimeapi.NamespaceMode_NODE }
	if err := netns.ValidateSysctls(c.GetLinux().GetSysctls(), own(ns.GetNetwork()), own(ns.GetIpc()), own(ns.GetNetwork())); err != nil {
		return fmt.Errorf("linux.sysctls: %w: %w", pod.ErrInvalid, err)
	}
	return nil
}

func (m specMaker) ValidateContainer(c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) error {
	if err := spec.ValidateContainer(c, s); err != nil {
		return err
	}
	_, err := m.cdiDevices(c)
	return err
}

// Container makes config.json. Host paths of mounts are looked at here, where a hung one delays nobody but its own container.
func (m specMaker) Container(r pod.SpecRequest) (pod.ContainerSpec, error) {
	sc := r.Container.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !m.handlers[r.Handler].privileged {
		return pod.ContainerSpec{}, fmt.Errorf("linux.security_context.privileged: runtime handler %q takes no privileged containers ([runtimes.%[1]s] privileged): %w",
			r.Handler, pod.ErrInvalid)
	}
	u, err := user.Resolve(r.Paths.Rootfs, userRequest(sc, r.Image))
	if err != nil {
		return pod.ContainerSpec{}, fmt.Errorf("user: %w: %w", pod.ErrInvalid, err)
	}
	in := m.input(r)
	if in.Sources, err = m.mountSources(r); err != nil {
		return pod.ContainerSpec{}, err
	}
	in.User = spec.User{UID: u.UID, GID: u.GID, Groups: u.Groups, Home: u.Home}
	if err := m.addDevices(&in, r); err != nil {
		return pod.ContainerSpec{}, err
	}
	if err := m.appArmor(&in, sc); err != nil {
		return pod.ContainerSpec{}, err
	}
	m.noteClamp(r.Container.GetLinux().GetResources().GetOomScoreAdj())
	if in.Profile, err = seccompProfile(sc.GetSeccomp()); err != nil {
		return pod.ContainerSpec{}, err
	}
	in.Annotations = m.passedAnnotations(r)
	generated, err := spec.Generate(in)
	if err != nil {
		return pod.ContainerSpec{}, err
	}
	names, err := m.cdiDevices(r.Container)
	if err == nil {
		err = asked("CDI_devices", m.cdi.Inject(generated, names))
	}
	if err == nil {
		err = m.tolerate(r, m.classes.Apply(generated, qosRequest(r)))
	}
	if err == nil {
		err = hooksd.Inject(m.hooks, generated, hooksd.Container{Annotations: allAnnotations(r), HasBindMounts: len(r.Container.GetMounts()) > 0})
	}
	if err != nil {
		return pod.ContainerSpec{}, err
	}
	stop, err := spec.StopSignal(r.Container, r.Image.StopSignal)
	if err != nil {
		return pod.ContainerSpec{}, err
	}
	raw, err := json.Marshal(generated)
	out := pod.ContainerSpec{JSON: raw, StopSignal: stop, UID: int64(u.UID), GID: int64(u.GID)}
	for _, g := range u.Groups {
		out.Groups = append(out.Groups, int64(g))
	}
	return out, err
}

// allAnnotations are the pod's and the container's; the latter count more.
func allAnnotations(r pod.SpecRequest) map[string]string {
	all := maps.Clone(r.Sandbox.GetAnnotations())
	if all == nil {
		return r.Container.GetAnnotations()
	}
	maps.Copy(all, r.Container.GetAnnotations())
	return all
}

func (specMaker) ImageVolumes(im image.Image, c *runtimeapi.ContainerConfig) ([]string, error) {
	return spec.ImageVolumes(im.Volumes, c.GetMounts())
}

func (m specMaker) input(r pod.SpecRequest) spec.Input {
	p, facts := r.Paths, m.host
	if name, err := os.Hostname(); err == nil { // asked each time: it may be changed; an error leaves the pod's own
		facts.Hostname = name
	}
	policy := m.handlers[r.Handler]
	return spec.Input{Rlimits: policy.rlimits, Sandbox: r.Sandbox, Container: r.Container, Host: facts, CgroupsPath: r.CgroupsPath, SandboxID: r.SandboxID, ContainerID: r.ContainerID,
		Volumes: r.Volumes, Labels: spec.Labels(r.Labels), UserNS: spec.UserNamespaceOf(r.Sandbox),
		Image: spec.ImageConfig{Entrypoint: r.Image.Entrypoint, Cmd: r.Image.Cmd, Env: r.Image.Env, WorkingDir: r.Image.WorkingDir, StopSignal: r.Image.StopSignal},
		Paths: spec.Paths{Rootfs: p.Rootfs, NetNS: p.NetNS, IPCNS: p.IPCNS, UTSNS: p.UTSNS, PIDNS: p.PIDNS, UserNS: p.UserNS,
			ResolvConf: p.ResolvConf, Hostname: p.Hostname, Shm: p.Shm, PauseBinary: p.PauseBinary}}
}

func (m specMaker) Pause(r pod.SpecRequest) ([]byte, error) {
	in := m.input(r)
	in.Annotations = m.passedAnnotations(r)
	if m.host.AppArmor {
		if err := m.profiles.EnsureDefault(); err == nil { // an error has been logged, and Status tells it
			in.Host.AppArmorDefault = apparmor.DefaultName
		}
	}
	generated, err := spec.GeneratePause(in)
	if err != nil {
		return nil, err
	}
	return json.Marshal(generated)
}

func (m specMaker) Exec(configJSON []byte, e spec.Exec) ([]byte, error) {
	return spec.ExecJSON(configJSON, e, m.host)
}

func (m specMaker) Update(old, new *runtimeapi.LinuxContainerResources) ([]byte, *runtimeapi.LinuxContainerResources, error) {
	m.noteClamp(new.GetOomScoreAdj())
	oci, merged, err := spec.UpdateResources(old, new)
	if err != nil {
		return nil, nil, err
	}
	raw, err := json.Marshal(oci)
	return raw, merged, err
}

// noteClamp says once that this node cannot protect its containers from the OOM killer as they ask: it is true of all of them.
func (m specMaker) noteClamp(want int64) {
	if want >= int64(m.host.OOMScoreFloor) {
		return
	}
	m.clamped.Do(func() {
		m.log.Warn("oom_score_adj is raised to what this daemon may set, here and in all later containers; give it CAP_SYS_RESOURCE",
			"asked", want, "set", m.host.OOMScoreFloor)
	})
}

func (m specMaker) SetResources(configJSON []byte, r *runtimeapi.LinuxContainerResources) ([]byte, error) {
	return spec.SetResourcesJSON(configJSON, r, m.host)
}

func (specMaker) PodResources(containers, overhead *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	return spec.PodResources(containers, overhead)
}

func userRequest(sc *runtimeapi.LinuxContainerSecurityContext, im image.Image) user.Request {
	r := user.Request{Username: sc.GetRunAsUsername(), ImageUser: im.User, Groups: sc.GetSupplementalGroups(),
		Strict: sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict}
	if v := sc.GetRunAsUser(); v != nil {
		r.UID = &v.Value
	}
	if v := sc.GetRunAsGroup(); v != nil {
		r.GID = &v.Value
	}
	return r
}
