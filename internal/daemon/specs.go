// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/host"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/linux/user"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/spec"
)

// seccompRoot is where the kubelet keeps Localhost profiles when it names them without a path.
const seccompRoot = "/var/lib/kubelet/seccomp"

// maxProfile bounds a seccomp profile, in bytes.
const maxProfile = 1 << 20

// specMaker implements pod.Specs: it looks up what the pure package spec must be told.
type specMaker struct{ host spec.Host }

func (specMaker) ValidateSandbox(c *runtimeapi.PodSandboxConfig) error {
	if err := spec.ValidateSandbox(c); err != nil {
		return err
	}
	ns := c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	own := func(m runtimeapi.NamespaceMode) bool { return m != runtimeapi.NamespaceMode_NODE }
	if err := netns.ValidateSysctls(c.GetLinux().GetSysctls(), own(ns.GetNetwork()), own(ns.GetIpc()), own(ns.GetNetwork())); err != nil {
		return fmt.Errorf("linux.sysctls: %w: %w", pod.ErrInvalid, err)
	}
	return nil
}

func (specMaker) ValidateContainer(c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) error {
	return spec.ValidateContainer(c, s)
}

// Container makes config.json. Host paths of mounts are looked at here, where a hung one delays nobody but its own container.
func (m specMaker) Container(r pod.SpecRequest) (pod.ContainerSpec, error) {
	sc := r.Container.GetLinux().GetSecurityContext()
	u, err := user.Resolve(r.Paths.Rootfs, userRequest(sc, r.Image))
	if err != nil {
		return pod.ContainerSpec{}, fmt.Errorf("user: %w: %w", pod.ErrInvalid, err)
	}
	if err := checkMounts(r.Container.GetMounts()); err != nil {
		return pod.ContainerSpec{}, err
	}
	devices, err := requestedDevices(r.Container.GetDevices())
	if err != nil {
		return pod.ContainerSpec{}, err
	}
	in := m.input(r)
	in.User, in.Devices = spec.User{UID: u.UID, GID: u.GID, Groups: u.Groups, Home: u.Home}, devices
	if in.Profile, err = seccompProfile(sc.GetSeccomp()); err != nil {
		return pod.ContainerSpec{}, err
	}
	generated, err := spec.Generate(in)
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

func (m specMaker) input(r pod.SpecRequest) spec.Input {
	p := r.Paths
	return spec.Input{Sandbox: r.Sandbox, Container: r.Container, Host: m.host, CgroupsPath: r.CgroupsPath, SandboxID: r.SandboxID, ContainerID: r.ContainerID,
		Image: spec.ImageConfig{Entrypoint: r.Image.Entrypoint, Cmd: r.Image.Cmd, Env: r.Image.Env, WorkingDir: r.Image.WorkingDir, StopSignal: r.Image.StopSignal},
		Paths: spec.Paths{Rootfs: p.Rootfs, NetNS: p.NetNS, IPCNS: p.IPCNS, UTSNS: p.UTSNS, PIDNS: p.PIDNS,
			ResolvConf: p.ResolvConf, Hostname: p.Hostname, Shm: p.Shm, PauseBinary: p.PauseBinary}}
}

func (m specMaker) Pause(r pod.SpecRequest) ([]byte, error) {
	return json.Marshal(spec.GeneratePause(m.input(r)))
}

func (specMaker) Exec(configJSON []byte, cmd []string, tty bool) ([]byte, error) {
	return spec.ExecJSON(configJSON, cmd, tty)
}

func (specMaker) Update(old, new *runtimeapi.LinuxContainerResources) ([]byte, *runtimeapi.LinuxContainerResources, error) {
	oci, merged, err := spec.UpdateResources(old, new)
	if err != nil {
		return nil, nil, err
	}
	raw, err := json.Marshal(oci)
	return raw, merged, err
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

// checkMounts names what cannot be mounted. A host path that is missing is an error (CRI: Mount.host_path): a folder made in its
// place would hide the mistake.
func checkMounts(mounts []*runtimeapi.Mount) error {
	for i, m := range mounts {
		if _, err := os.Stat(m.GetHostPath()); err != nil {
			return fmt.Errorf("mounts[%d] %s: host_path: %w: %w", i, m.GetContainerPath(), pod.ErrInvalid, err)
		}
	}
	return nil
}

func requestedDevices(asked []*runtimeapi.Device) ([]spec.Device, error) {
	var all []spec.Device
	for i, d := range asked {
		found, err := host.DeviceOf(d.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("devices[%d]: %w: %w", i, pod.ErrInvalid, err)
		}
		if d.GetPermissions() == "" || strings.Trim(d.GetPermissions(), "rwm") != "" {
			return nil, fmt.Errorf("devices[%d]: permissions %q are not of r, w and m: %w", i, d.GetPermissions(), pod.ErrInvalid)
		}
		out := specDevice(found)
		out.Path, out.Access = d.GetContainerPath(), d.GetPermissions()
		all = append(all, out)
	}
	return all, nil
}

func specDevice(d host.Device) spec.Device {
	return spec.Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, Mode: d.Mode, UID: d.UID, GID: d.GID, Access: "rwm"}
}

// seccompProfile reads what a container is confined with. No profile given is unconfined, as the CRI has it: the kubelet always names one.
func seccompProfile(p *runtimeapi.SecurityProfile) (spec.Profile, error) {
	if p == nil || p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return spec.Profile{}, nil
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
		return spec.Profile{Default: true}, nil
	}
	path := p.GetLocalhostRef()
	if path == "" {
		return spec.Profile{}, fmt.Errorf("seccomp.localhost_ref: is empty: %w", pod.ErrInvalid)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(seccompRoot, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return spec.Profile{}, fmt.Errorf("seccomp.localhost_ref: %w: %w", pod.ErrInvalid, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxProfile))
	if err != nil {
		return spec.Profile{}, fmt.Errorf("seccomp.localhost_ref: %w", err)
	}
	return spec.Profile{Path: path, JSON: raw}, nil
}
