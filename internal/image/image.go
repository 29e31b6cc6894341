// SPDX-License-Identifier: Apache-2.0

// Package image keeps the node's images: it pulls them from registries, unpacks their layers, gives containers root file systems and
// collects what nobody needs. It is the only door to containerd's image libraries; pod and cri use it, with
// value types of its own.
package image

import (
	"errors"
	"time"

	"github.com/berth-run/berth/internal/image/registry"
	"github.com/berth-run/berth/internal/image/trust"
	"github.com/berth-run/berth/internal/linux/mount"
)

var (
	// ErrSnapshotter: a remote snapshotter is down, hangs or is out of order; trying later may help.
	ErrSnapshotter = errors.New("snapshotter unavailable")
	// ErrNotFound: no such image, here or in the registry.
	ErrNotFound = errors.New("image not found")
	// ErrInvalidReference: what was given cannot name an image.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrUnauthorized: the registry refuses the credentials, or wants some.
	ErrUnauthorized = registry.ErrUnauthorized
	// ErrUnavailable: no registry for the image could be reached or gave a useful answer; trying later may help.
	ErrUnavailable = registry.ErrUnavailable
	// ErrCorrupt: what the registry sent is not what it promised.
	ErrCorrupt = errors.New("corrupt image")
	// ErrNoSpace: the disk has too little left for the image. What was fetched of it is given back.
	ErrNoSpace = errors.New("no space for the image")
	// ErrRefused: the node's signature policy does not let the image in.
	ErrRefused = trust.ErrRefused
	// ErrUnsupported: an image of a kind that this node cannot run.
	ErrUnsupported = errors.New("unsupported image")
)

// Image is one image of the store.
type Image struct {
	// ID is the digest of the image's configuration, "sha256:…"; that of its manifest for artifacts.
	ID string
	// RepoTags and RepoDigests are the references that lead to it.
	RepoTags, RepoDigests []string
	// Size is what was to be downloaded for it, in bytes.
	Size int64
	// UID is the user it wants to run as, where that is a number; else Username is its name. Neither: root.
	UID      *int64
	Username string
	// User is the same as its configuration has it, with a group if there is one.
	User                 string
	Entrypoint, Cmd, Env []string
	WorkingDir           string
	StopSignal           string
	Labels               map[string]string
	Volumes              []string
	Created              time.Time
	// ChainID names its unpacked layers, Layers counts them.
	ChainID string
	Layers  int
	// Snapshotter is the remote one that has its layers; empty: the store itself.
	Snapshotter string
	// Artifact is the type of an OCI artifact, which can be mounted, not run; empty for container images.
	Artifact string
	// Pinned images are not collected by the kubelet.
	Pinned bool
}

// Auth are credentials for one pull. They are never logged.
type Auth = registry.Auth

// PullRequest names an image to pull.
type PullRequest struct {
	Ref  string
	Auth *Auth
	// Handler is the runtime handler that the image is for; one that Config.Handlers does not have takes it as it is.
	Handler string
	// Progress, if set, is called a few times a second from the goroutine that waits in Pull.
	Progress func(Progress)
}

// Progress is how far a pull has come.
type Progress struct {
	// Stage is what is being done: "resolve", "fetch", "verify", "unpack" or "record".
	Stage string
	// Bytes of Total are here. Total grows as manifests are read; what is here already is not in it.
	Bytes, Total int64
	// Unpacked of Layers are done.
	Unpacked, Layers int
}

// RootfsRequest asks for a container's root file system, and for what else of images it mounts.
type RootfsRequest struct {
	// ID is the container's, Handler the runtime handler that it is for.
	ID, Handler string
	ImageID     string
	// VolumeIDs are the images that are mounted as volumes, read-only.
	VolumeIDs []string
	// Owner, if set, is the user namespace that all is for.
	Owner *Owner
}

// Owner is a user namespace: the path of it, and the host's IDs of its root.
type Owner struct {
	UserNS   string
	UID, GID int
}

// Rootfs is a container's root file system, and the volumes in the order of the request, to be mounted.
type Rootfs struct {
	Root    mount.Overlay
	Volumes []mount.Overlay

	passing []*mount.Layer // open for these mounts alone
}

// Close is to be called when all is mounted, or will not be.
func (r Rootfs) Close() error {
	var errs []error
	for _, l := range r.passing {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// FSInfo tells what the store takes of its file system.
type FSInfo struct {
	Mountpoint string
	// Device is the block device below; empty for file systems without one.
	Device string
	// UsedBytes and InodesUsed are taken by images; the writable layers of containers are not among them.
	UsedBytes, InodesUsed int64
	// The file system as a whole.
	CapacityBytes, AvailableBytes, Inodes, InodesFree int64
	Timestamp                                         time.Time
}
