// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/linux/selinux"
	"github.com/berth-run/berth/internal/network"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/spec"
)

// Runtime starts shims and finds them again. Implementation: runtime.Runtime, through an adapter in daemon.
type Runtime interface {
	// HasHandler tells whether a handler of that name is configured; Handlers lists them for errors.
	HasHandler(name string) bool
	Handlers() []string
	// SandboxContainer tells whether the handler wants a container for the pod itself, which the others join.
	SandboxContainer(handler string) bool
	// CanCheckpoint tells why containers of a handler cannot be checkpointed or restored here: runtime.ErrUnsupported.
	CanCheckpoint(handler string) error
	// TaskPID is the process ID of a task's init on the host, where the handler knows better than the shim's answer to Start, pid.
	TaskPID(handler, id string, pid int) int
	// DialSandbox connects to a TCP port of localhost inside the sandbox that the container of that ID is in. Closing one direction of the connection
	// ends both. runtime.ErrUnsupported: the handler has no way.
	DialSandbox(ctx context.Context, handler, id string, port uint16) (net.Conn, error)
	// StartShim starts a pod's shim and returns without waiting for it to be ready.
	StartShim(ctx context.Context, sandbox string) (Shim, error)
	// ConnectShim finds the shim of an earlier life. runtime.ErrShimGone: nobody listens.
	ConnectShim(ctx context.Context, sandbox string) (Shim, error)
	// KillShim ends a shim that does not answer; idempotent.
	KillShim(ctx context.Context, sandbox string) error
	// KillLeftOver ends a container whose shim is gone and frees what the OCI runtime keeps of it; idempotent.
	KillLeftOver(ctx context.Context, handler, id, bundle string) error
	// ReadExit reads the exit facts that a shim wrote; false: none were written.
	ReadExit(bundle string) (runtime.Exit, bool, error)
}

// Shim is one pod's shim. Errors: runtime.ErrShimGone once it is gone, runtime.ErrNotFound for unknown tasks.
type Shim interface {
	Create(ctx context.Context, t runtime.CreateTask) error
	Start(ctx context.Context, id string) (pid int, err error)
	// Wait blocks until the task has ended.
	Wait(ctx context.Context, id string) (runtime.Exit, error)
	Kill(ctx context.Context, id string, signal int, all bool) error
	// Delete frees a stopped task; unknown is success.
	Delete(ctx context.Context, id string) error
	Update(ctx context.Context, id string, resources []byte) error
	ReopenLog(ctx context.Context, id string) error
	// Pause and Resume freeze a container and let it go on; Checkpoint writes the state of its processes into a folder. See runtime.Shim.
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Checkpoint(ctx context.Context, id, folder string, own bool) error
	ExecSync(ctx context.Context, id string, r runtime.ExecRequest) (runtime.ExecResult, error)
	// Exec and Attach serve a client's session to its end; see runtime.Shim.
	Exec(ctx context.Context, id string, process []byte, session runtime.Session) (code int, err error)
	Attach(ctx context.Context, id string, session runtime.Session, keep bool) error
	Info(ctx context.Context) (runtime.Info, error)
	// Shutdown ends a shim without tasks, or with now any; a shim that is gone is success.
	Shutdown(ctx context.Context, now bool) error
	// Close drops the connection; the shim stays.
	Close() error
}

// Network connects sandboxes. Implementation: network.Network.
type Network interface {
	Ready() error
	Attach(ctx context.Context, a network.Attachment) (network.Result, error)
	// Detach is idempotent and needs no namespace.
	Detach(ctx context.Context, a network.Attachment) error
	// Cached lists the IDs of sandboxes that something is held for.
	Cached(ctx context.Context) ([]string, error)
	// GC frees what plugins hold for sandboxes that are not in keep.
	GC(ctx context.Context, keep []string) error
}

// Images gives containers their root file systems. Implementation: image.Store.
type Images interface {
	Status(ref string) (image.Image, error)
	PrepareRootfs(ctx context.Context, r image.RootfsRequest) (image.Rootfs, error)
	// FillVolumes makes a container's anonymous volumes; VolumeFolder is where its n-th is.
	FillVolumes(ctx context.Context, r image.FillRequest) error
	VolumeFolder(id string, n int) string
	// RemoveRootfs is idempotent.
	RemoveRootfs(ctx context.Context, id string) error
	Rootfses() ([]string, error)
	// DiffRootfs writes what a container has changed in its root file system, as an OCI layer. It must be paused, or have ended.
	DiffRootfs(ctx context.Context, id string, owner *image.Owner, w io.Writer) error
	// ApplyRootfs puts such a layer into a root file system that is prepared and not mounted.
	ApplyRootfs(ctx context.Context, id string, owner *image.Owner, r io.Reader) error
}

// Host is what a pod holds of the kernel. Each release is idempotent.
type Host interface {
	// Dial connects to a TCP port from inside a network namespace; empty: the host's.
	Dial(ctx context.Context, netns string, address netip.AddrPort) (net.Conn, error)
	CreateNamespaces(NamespaceRequest) error
	RemoveNamespaces(NamespacePins) error
	// ResetNamespaces sets host name and sysctls of IPC again, which what is restored from a checkpoint has brought along.
	ResetNamespaces(NamespaceRequest) error
	// SetInterfaceSysctls sets those sysctls of interfaces that only the network made.
	SetInterfaceSysctls(netns string, sysctls map[string]string) error
	// PinPID pins the PID namespace of process pid at path, if the process is in a cgroup of that name's; Unpin undoes it. ErrNotFound: it is not.
	PinPID(pid int, cgroup, path string) error
	Unpin(path string) error
	CgroupExists(parent string) (bool, error)
	CreateCgroup(ctx context.Context, parent string) error
	// RemoveCgroup kills what is left in the cgroup and removes it.
	RemoveCgroup(ctx context.Context, parent string) error
	// SetPodLimits sets the limits of a pod's own cgroup, those that are not zero, and verifies them. Idempotent.
	SetPodLimits(ctx context.Context, parent string, r *runtimeapi.LinuxContainerResources) error
	// InForce is want with what the kernel has in force in a container's cgroup where it is something else.
	InForce(cgroupsPath string, want *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error)
	// SetOOMScore sets oom_score_adj of all processes of a container's cgroup, raised to what this node may set.
	SetOOMScore(cgroupsPath string, score int64) error
	// MountShm makes a tmpfs that belongs to a user and a group of the host. Its files have the SELinux label, if there is one.
	MountShm(target string, size int64, uid, gid int, label string) error
	MountOverlay(target string, o mount.Overlay) error
	Unmount(target string) error
	// UnmountBelow unmounts all that is mounted at and under dir.
	UnmountBelow(dir string) error
}

// Labels are SELinux's. Implementation: selinux.Policy. Each New, Derive and Hold wants a Release.
type Labels interface {
	// New chooses a pod's, with a level of its own unless o names one. selinux.ErrInvalid.
	New(o selinux.Options) (selinux.Labels, error)
	// Derive makes a container's of its pod's. selinux.ErrInvalid.
	Derive(pod selinux.Labels, o selinux.Options) (selinux.Labels, error)
	// Hold takes what was chosen in an earlier life.
	Hold(selinux.Labels) error
	Release(selinux.Labels)
	// Relabel gives a file, or a folder and all below it, a label. selinux.ErrSystem, errors.ErrUnsupported.
	Relabel(path, label string) error
}

// Observer measures. Its methods must not block.
type Observer interface {
	// Stage tells how long a step of making or releasing an object ("sandbox" or "container") took.
	// ctx tells the trace, see telemetry.TraceID.
	Stage(ctx context.Context, object, stage string, release bool, took time.Duration, err error)
	// LogDropped tells of output that a container's log did not take, once it has ended.
	LogDropped(bytes uint64)
}

// NamespacePins are the files that a sandbox's namespaces are pinned at; empty: the host's namespace.
type NamespacePins struct{ Net, IPC, UTS, User string }

// NamespaceRequest asks for new namespaces.
type NamespaceRequest struct {
	Pins     NamespacePins
	Hostname string
	Sysctls  map[string]string
	// UserNS is the mapping of Pins.User.
	UserNS *spec.UserNamespace
}

// Specs turns configs into OCI specs. Implementation in daemon, over package spec and the host's facts.
type Specs interface {
	// ValidateSandbox checks for the runtime handler, which is known.
	ValidateSandbox(c *runtimeapi.PodSandboxConfig, handler string) error
	ValidateContainer(*runtimeapi.ContainerConfig, *runtimeapi.PodSandboxConfig) error
	// ImageVolumes are the places of a container's anonymous volumes.
	ImageVolumes(im image.Image, c *runtimeapi.ContainerConfig) ([]string, error)
	// Container returns config.json and what was resolved on the way.
	Container(SpecRequest) (ContainerSpec, error)
	Pause(SpecRequest) ([]byte, error)
	// Exec returns an OCI process like the one of the config.json given, with another command.
	Exec(configJSON []byte, e spec.Exec) ([]byte, error)
	// Update merges new resources into old ones (zero values leave a field alone) and returns them as the
	// OCI runtime wants them, and merged.
	Update(old, new *runtimeapi.LinuxContainerResources) (oci []byte, merged *runtimeapi.LinuxContainerResources, err error)
	// SetResources returns the config.json given, with other resources.
	SetResources(configJSON []byte, r *runtimeapi.LinuxContainerResources) ([]byte, error)
	// PodResources are those of the pod's cgroup: its containers' together, and the overhead.
	PodResources(containers, overhead *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error)
}

// SpecRequest is what a spec is made from.
type SpecRequest struct {
	Sandbox   *runtimeapi.PodSandboxConfig
	Container *runtimeapi.ContainerConfig
	Image     image.Image
	Paths     SpecPaths
	// ImageMounts are where the images of Container.Mounts are mounted, by the mount's index; Volumes are the anonymous ones.
	ImageMounts map[int]string
	Volumes     []spec.Volume
	// Handler is the runtime handler's name.
	Handler string
	// Labels are the container's, or the pod's for Pause.
	Labels selinux.Labels
	// CgroupsPath is in the form that the cgroup driver wants.
	CgroupsPath string
	// IDs for annotations.
	SandboxID, ContainerID string
	// Doing is told what is looked at that may hang, a volume's file system for example; nil: nobody wants to know.
	Doing func(what string)
}

// SpecPaths are the paths on the host that a spec refers to; empty: the host's own, or none.
type SpecPaths struct {
	Rootfs, NetNS, IPCNS, UTSNS, PIDNS, UserNS string
	ResolvConf, Hostname, Shm                  string
	PauseBinary                                string
}

// ContainerSpec is a generated spec and what status reports of it.
type ContainerSpec struct {
	JSON       []byte
	StopSignal int
	UID, GID   int64
	Groups     []int64
}

// now is the clock, in Unix nanoseconds as CRI has them.
func now() int64 { return time.Now().UnixNano() }
