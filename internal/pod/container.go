// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/selinux"
	"github.com/berth-run/berth/internal/step"
)

// Container is one container of a sandbox. Its methods may be called from any goroutine.
type Container struct {
	ID string
	// Config is what CreateContainer asked for; nobody changes it.
	Config *runtimeapi.ContainerConfig

	m       *Manager
	sandbox *Sandbox
	paths   containerPaths
	ops     ops
	// checkpoints are operations beside the others: a stop need not wait for them.
	checkpoints ops
	plan        *step.Plan

	status atomic.Pointer[ContainerStatus]
	// done is closed once the container has exited, after its facts are published.
	done chan struct{}
	// patience is how long the stop in flight still waits before it kills.
	patience deadline

	// source is where RestorePod, while it makes the container, takes it from; nil: it is a new one.
	source *source

	ledger[containerRecord, *containerRecord]
	resources *runtimeapi.LinuxContainerResources // guarded by mu, like the facts
}

// containerRecord is a container's durable facts. Times are Unix nanoseconds; 0 means not yet.
type containerRecord struct {
	ID        string          `json:"id"`
	SandboxID string          `json:"sandbox_id"`
	Config    json.RawMessage `json:"config"`
	// Resources replace those of the config once they were updated.
	Resources json.RawMessage `json:"resources,omitempty"`

	CreatedAt  int64 `json:"created_at"`
	StartedAt  int64 `json:"started_at"`
	FinishedAt int64 `json:"finished_at"`
	// RemovedAt is when its removal began: a start-up ends what is left of it.
	RemovedAt int64 `json:"removed_at"`

	PID      int    `json:"pid"`
	ExitCode int32  `json:"exit_code"`
	Reason   string `json:"reason"`
	Message  string `json:"message"`

	ImageID  string `json:"image_id"`
	ImageRef string `json:"image_ref"`
	// MountImages are the IDs of the images that Config.Mounts name, in their order; Volumes the places of anonymous volumes.
	MountImages []string `json:"mount_images,omitempty"`
	Volumes     []string `json:"volumes,omitempty"`
	StopSignal  int      `json:"stop_signal"`
	// SELinux has the container's labels.
	SELinux selinux.Labels `json:"selinux,omitzero"`
	UID     int64          `json:"uid"`
	GID     int64          `json:"gid"`
	Groups  []int64        `json:"groups,omitempty"`

	// Checkpoint is the unfinished archive of a checkpoint that is being made; empty: none is. The container stands still for a part of that time.
	Checkpoint string `json:"checkpoint,omitempty"`
	// Restore: RestorePod has made it, and its start restores what the checkpoint has of it.
	Restore bool `json:"restore,omitempty"`

	Begun []string `json:"begun"`
}

func (r *containerRecord) begun() *[]string { return &r.Begun }

const (
	containerKind    = "container"
	containerVersion = 1
)

// Reasons of CRI's ContainerStatus. The kubelet knows OOMKilled and shows the others.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
)

// startErrorCode is the exit code of a container that could not be started, as containerd and Docker have it.
const startErrorCode = 128

// ContainerStatus is what is true of a container at one instant. It is never changed.
type ContainerStatus struct {
	ID, SandboxID string
	// SandboxHandler is the runtime handler where the pod has a sandbox container, in which the runtime may keep all others; else empty.
	SandboxHandler string
	Config         *runtimeapi.ContainerConfig
	State          runtimeapi.ContainerState
	// Hidden: still being created, not to be listed.
	Hidden                           bool
	CreatedAt, StartedAt, FinishedAt int64
	PID                              int
	ExitCode                         int32
	Reason, Message                  string
	ImageID, ImageRef                string
	LogPath                          string // absolute; empty without a log
	// CgroupsPath is as in the OCI spec: a path, or "slice:prefix:id" under systemd.
	CgroupsPath string
	Resources   *runtimeapi.LinuxContainerResources
	StopSignal  int
	UID, GID    int64
	Groups      []int64
	// MountImages are the IDs of the images that Config.Mounts name, in their order.
	MountImages []string
}

type containerPaths struct {
	record, bundle, rootfs, spec, log string
	// volumes has the image volumes; targetPID is where the PID namespace of another container is pinned for the start.
	volumes, targetPID string
	// images has what CRIU restores, until it has been.
	images string
}

func (s *Sandbox) containerPaths(id string, config *runtimeapi.ContainerConfig) containerPaths {
	bundle := filepath.Join(s.paths.state, id)
	p := containerPaths{record: filepath.Join(s.paths.containerRecord, id+".json"), bundle: bundle,
		rootfs: filepath.Join(bundle, "rootfs"), spec: filepath.Join(bundle, "config.json"),
		volumes: filepath.Join(bundle, "volumes"), targetPID: filepath.Join(bundle, "target-pid"), images: s.m.restoreDir(id)}
	if dir, file := s.Config.GetLogDirectory(), config.GetLogPath(); dir != "" && file != "" {
		p.log = filepath.Join(dir, file)
	}
	return p
}

// newContainer wires a container around its record.
func (s *Sandbox) newContainer(rec containerRecord, config *runtimeapi.ContainerConfig) (*Container, error) {
	c := &Container{ID: rec.ID, Config: config, m: s.m, sandbox: s, paths: s.containerPaths(rec.ID, config),
		resources: config.GetLinux().GetResources(), done: make(chan struct{})}
	c.rec, c.object, c.path, c.header, c.publish = rec, c, c.paths.record, s.m.header(containerKind, containerVersion), c.show
	c.log = s.log.With("container", rec.ID, "name", config.GetMetadata().GetName())
	if rec.Resources != nil {
		c.resources = &runtimeapi.LinuxContainerResources{}
		if err := protojson.Unmarshal(rec.Resources, c.resources); err != nil {
			return nil, fmt.Errorf("decode resources: %w", err)
		}
	}
	if rec.FinishedAt != 0 {
		close(c.done)
	}
	c.plan = c.newPlan()
	c.ops = ops{object: c.String(), stage: c.plan.Stage, work: &s.m.work, log: c.log}
	c.checkpoints = ops{object: c.String(), stage: func() string { return "" }, work: &s.m.work, log: c.log}
	c.publish()
	return c, nil
}

// String names the container in errors.
func (c *Container) String() string {
	pod := c.sandbox.Config.GetMetadata()
	return fmt.Sprintf("container %s (%s in %s/%s)", c.ID, c.Config.GetMetadata().GetName(), pod.GetNamespace(), pod.GetName())
}

// Status is a snapshot; it never waits.
func (c *Container) Status() *ContainerStatus { return c.status.Load() }

// Sandbox is the one that the container lives in.
func (c *Container) Sandbox() *Sandbox { return c.sandbox }

func (r containerRecord) state() runtimeapi.ContainerState {
	switch {
	case r.FinishedAt != 0:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case r.StartedAt != 0:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case r.CreatedAt != 0:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

// show makes the facts visible. Preconditions: c.mu is held, or c is not shared yet.
func (c *Container) show() {
	r := &c.rec
	c.sandbox.feed.publishContainer(&c.status, &ContainerStatus{ID: c.ID, SandboxID: c.sandbox.ID, SandboxHandler: c.sandbox.sandboxHandler(), Config: c.Config, State: r.state(),
		Hidden: c.removed || r.CreatedAt == 0 && r.FinishedAt == 0 || c.sandbox.Status().Hidden, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt,
		PID: r.PID, ExitCode: r.ExitCode, Reason: r.Reason, Message: r.Message, ImageID: r.ImageID, ImageRef: r.ImageRef,
		LogPath: c.paths.log, CgroupsPath: c.sandbox.cgroupsPath(c.ID), Resources: c.resources, StopSignal: r.StopSignal, UID: r.UID, GID: r.GID, Groups: r.Groups,
		MountImages: r.MountImages})
}

func containerName(sandbox string, c *runtimeapi.ContainerConfig) string {
	md := c.GetMetadata()
	return fmt.Sprintf("container\x00%s\x00%s\x00%d", sandbox, md.GetName(), md.GetAttempt())
}
