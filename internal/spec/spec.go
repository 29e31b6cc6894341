// SPDX-License-Identifier: Apache-2.0

// Package spec turns a CRI configuration, an image's configuration and facts about the host into an OCI runtime-spec. It is pure: it
// reads no file, no clock and no environment, so that what a container gets can be tested to the letter. pod's Specs (in daemon)
// is its only caller.
package spec

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrInvalid: the configuration can never work; the text names the field as the CRI does.
var ErrInvalid = errors.New("invalid")

// ociVersion is the lowest version of the runtime-spec that has all that is used here: older runtimes refuse newer ones.
const ociVersion = "1.2.0"

// Input is all that a spec is made from.
type Input struct {
	Sandbox   *runtimeapi.PodSandboxConfig
	Container *runtimeapi.ContainerConfig
	Image     ImageConfig
	User      User
	Paths     Paths
	Host      Host
	// CgroupsPath in the form of the cgroup driver in use.
	CgroupsPath            string
	SandboxID, ContainerID string
	// Annotations are the pod's and the container's that the handler may see.
	Annotations map[string]string
	// Profile is the seccomp profile; a privileged container gets none.
	Profile Profile
	// Devices are what Container.Devices name on this host, in their order; HostDevices are what a privileged container gets besides.
	Devices, HostDevices []Device
	// WithoutHostDevices: a privileged container gets neither HostDevices nor leave to use other devices than Devices.
	WithoutHostDevices bool
	// Sources are what Container.Mounts name on this host, in their order.
	Sources []MountSource
	// Volumes are the anonymous volumes that the image asks for.
	Volumes []Volume
	// Rlimits are the runtime handler's own.
	Rlimits []Rlimit
	// Labels are those of SELinux, empty where there is none.
	Labels Labels
	// UserNS is the pod's user namespace, at Paths.UserNS; nil: the host's.
	UserNS *UserNamespace
}

// Labels are SELinux labels, of the process and of the files that are its own.
type Labels struct{ Process, Mount string }

// Rlimit is a limit of the process, by the OCI's name for it.
type Rlimit struct {
	Type       string
	Soft, Hard uint64
}

// ImageConfig is what counts of an image's configuration.
type ImageConfig struct {
	Entrypoint, Cmd, Env []string
	WorkingDir           string
	StopSignal           string
}

// User is whom the process runs as, resolved against the image.
type User struct {
	UID, GID uint32
	Groups   []uint32
	Home     string
}

// Paths are those on the host that a spec refers to. An empty namespace path is the host's namespace; PIDNS is read only where the
// container shares one.
type Paths struct {
	Rootfs, NetNS, IPCNS, UTSNS, PIDNS, UserNS string
	ResolvConf, Hostname, Shm                  string
	PauseBinary                                string
}

// Host is what the node allows.
type Host struct {
	// Hostname is the HOSTNAME of containers in the host's network.
	Hostname string
	// CgroupV2: only the unified hierarchy is mounted.
	CgroupV2 bool
	// NoHugePages: no cgroup controller limits huge pages here.
	NoHugePages bool
	// Capabilities that the daemon may hand on: its bounding set.
	Capabilities []string
	// OOMScoreFloor is the lowest oom_score_adj that can be set; above -1000 without CAP_SYS_RESOURCE.
	OOMScoreFloor int
	// Limits are the highest hard limits that can be given, by their OCI names ("RLIMIT_NOFILE"); those that are missing have no ceiling.
	Limits map[string]uint64
	// AppArmor: the kernel has it. AppArmorDefault is the name of the default profile that is loaded, if one is.
	AppArmor        bool
	AppArmorDefault string
	// Service is the daemon's unit, of containers that are scopes of systemd's; empty where it is none.
	Service string
	// NoX32: the kernel knows no system calls of the x32 ABI.
	NoX32 bool
}

// Device is a device node.
type Device struct {
	// Path in the container; Type is "c", "b" or "p".
	Path, Type   string
	Major, Minor int64
	Mode         uint32
	UID, GID     uint32
	// Access is a cgroup device permission, "rwm".
	Access string
}

// Generate makes the OCI spec. Errors: ErrInvalid.
func Generate(in Input) (*specs.Spec, error) {
	if err := ValidateContainer(in.Container, in.Sandbox); err != nil {
		return nil, err
	}
	if err := checkMapped(in.User, in.UserNS); err != nil {
		return nil, err
	}
	process, err := process(in)
	if err != nil {
		return nil, err
	}
	mounts, err := allMounts(in)
	if err != nil {
		return nil, err
	}
	linux, err := linuxSection(in)
	if err != nil {
		return nil, err
	}
	sc := in.Container.GetLinux().GetSecurityContext()
	linux.MountLabel = in.Labels.Mount
	if !sc.GetPrivileged() { // CRI: no confinement is applied; the daemon's own domain may do what it may
		process.SelinuxLabel = in.Labels.Process
	}
	s := &specs.Spec{
		Version: ociVersion, Root: &specs.Root{Path: in.Paths.Rootfs, Readonly: sc.GetReadonlyRootfs()},
		Process: process, Mounts: mounts, Linux: linux, Annotations: annotations(in),
	}
	if err := carryRaw(s, in.Paths); err != nil {
		return nil, err
	}
	if sc.GetPrivileged() {
		return s, nil
	}
	if err := applySeccomp(s, in.Profile, in.Host); err != nil {
		return nil, err
	}
	return s, nil
}

// annotations are for people, and for runtimes that must know what belongs to one pod (gVisor, Kata). Nothing in Berth reads them back,
// and nothing that an image or a pod says gets in but what the operator lets through: runtimes take orders from annotations.
func annotations(in Input) map[string]string {
	md := in.Sandbox.GetMetadata()
	return withOthers(in.Annotations, withScope(in, map[string]string{
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.sandbox-id":        in.SandboxID,
		"io.kubernetes.cri.sandbox-name":      md.GetName(),
		"io.kubernetes.cri.sandbox-namespace": md.GetNamespace(),
		"io.kubernetes.cri.sandbox-uid":       md.GetUid(),
		"io.kubernetes.cri.container-name":    in.Container.GetMetadata().GetName(),
		"io.kubernetes.cri.image-name":        imageName(in.Container.GetImage()),
	}))
}

// withScope adds what runc and crun hand on to systemd where the container is a scope: when the machine goes down, it ends before the daemon, which is to see how.
// Without the default dependencies, which these runtimes turn off, systemd would end it after all services.
func withScope(in Input, ours map[string]string) map[string]string {
	if in.Host.Service != "" && strings.Count(in.CgroupsPath, ":") == 2 {
		ours["org.systemd.property.After"] = "['" + in.Host.Service + "']"
		ours["org.systemd.property.DefaultDependencies"] = "true"
	}
	return ours
}

// withOthers adds annotations that were let through to ours, which nobody replaces.
func withOthers(others, ours map[string]string) map[string]string {
	out := maps.Clone(others)
	if out == nil {
		return ours
	}
	maps.Copy(out, ours)
	return out
}

// imageName is the name that the user gave, where the kubelet tells it: it asks for images by ID.
func imageName(im *runtimeapi.ImageSpec) string {
	if name := im.GetUserSpecifiedImage(); name != "" {
		return name
	}
	return im.GetImage()
}

func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), ErrInvalid)
}
