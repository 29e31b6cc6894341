// SPDX-License-Identifier: Apache-2.0

package wire

import "time"

// Any is google.protobuf.Any.
type Any struct {
	TypeURL string
	Value   []byte
}

func (m *Any) fields(c *codec) {
	c.string(1, &m.TypeURL)
	c.bytes(2, &m.Value)
}

// Empty is google.protobuf.Empty, and each message of which nothing is looked at.
type Empty struct{}

func (*Empty) fields(*codec) {}

// Status is containerd.v1.types.Status.
type Status int32

// States of a task.
const (
	StatusCreated Status = 1
	StatusRunning Status = 2
	StatusStopped Status = 3
	StatusPaused  Status = 4
)

// Mount is one of a root file system's mounts (containerd.types.Mount).
type Mount struct {
	Type    string
	Source  string
	Target  string // below the root file system
	Options []string
}

func (m *Mount) fields(c *codec) {
	c.string(1, &m.Type)
	c.string(2, &m.Source)
	c.string(3, &m.Target)
	c.strings(4, &m.Options)
}

// CreateTaskRequest makes a container.
type CreateTaskRequest struct {
	ID               string
	Bundle           string
	Rootfs           []Mount
	Terminal         bool
	Stdin            string
	Stdout           string
	Stderr           string
	Checkpoint       string
	ParentCheckpoint string
	Options          Any
}

func (m *CreateTaskRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.Bundle)
	list(c, 3, &m.Rootfs)
	c.bool(4, &m.Terminal)
	c.string(5, &m.Stdin)
	c.string(6, &m.Stdout)
	c.string(7, &m.Stderr)
	c.string(8, &m.Checkpoint)
	c.string(9, &m.ParentCheckpoint)
	c.message(10, &m.Options)
}

// ProcessRequest is every request that only names a process (or a container, without ExecID): DeleteRequest,
// StateRequest, StartRequest, WaitRequest, PidsRequest, PauseRequest, ResumeRequest, ConnectRequest.
type ProcessRequest struct {
	ID     string
	ExecID string
}

func (m *ProcessRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.ExecID)
}

// PIDResponse is every response with nothing but a pid: CreateTaskResponse, StartResponse, ExecResponse.
type PIDResponse struct{ PID uint32 }

func (m *PIDResponse) fields(c *codec) { c.uint32(1, &m.PID) }

// DeleteResponse tells how the process has ended.
type DeleteResponse struct {
	PID        uint32
	ExitStatus uint32
	ExitedAt   time.Time
}

func (m *DeleteResponse) fields(c *codec) {
	c.uint32(1, &m.PID)
	c.uint32(2, &m.ExitStatus)
	c.time(3, &m.ExitedAt)
}

// ResizePtyRequest sets the size of a terminal.
type ResizePtyRequest struct {
	ID     string
	ExecID string
	Width  uint32
	Height uint32
}

func (m *ResizePtyRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.ExecID)
	c.uint32(3, &m.Width)
	c.uint32(4, &m.Height)
}

// StateResponse tells how a process is.
type StateResponse struct {
	ID         string
	Bundle     string
	PID        uint32
	Status     Status
	Stdin      string
	Stdout     string
	Stderr     string
	Terminal   bool
	ExitStatus uint32
	ExitedAt   time.Time
	ExecID     string
}

func (m *StateResponse) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.Bundle)
	c.uint32(3, &m.PID)
	c.int32(4, (*int32)(&m.Status))
	c.string(5, &m.Stdin)
	c.string(6, &m.Stdout)
	c.string(7, &m.Stderr)
	c.bool(8, &m.Terminal)
	c.uint32(9, &m.ExitStatus)
	c.time(10, &m.ExitedAt)
	c.string(11, &m.ExecID)
}

// KillRequest signals.
type KillRequest struct {
	ID     string
	ExecID string
	Signal uint32
	All    bool
}

func (m *KillRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.ExecID)
	c.uint32(3, &m.Signal)
	c.bool(4, &m.All)
}

// CloseIORequest closes stdin.
type CloseIORequest struct {
	ID     string
	ExecID string
	Stdin  bool
}

func (m *CloseIORequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.ExecID)
	c.bool(3, &m.Stdin)
}

// ProcessInfo is one process of a container.
type ProcessInfo struct{ PID uint32 }

func (m *ProcessInfo) fields(c *codec) { c.uint32(1, &m.PID) }

// PidsResponse lists a container's processes.
type PidsResponse struct{ Processes []ProcessInfo }

func (m *PidsResponse) fields(c *codec) { list(c, 1, &m.Processes) }

// CheckpointTaskRequest asks for a checkpoint; options, which are another shim's, are not taken.
type CheckpointTaskRequest struct {
	ID   string
	Path string
}

func (m *CheckpointTaskRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.Path)
}

// UpdateTaskRequest changes a container's resources.
type UpdateTaskRequest struct {
	ID        string
	Resources Any
}

func (m *UpdateTaskRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.message(2, &m.Resources)
}

// WaitResponse tells how the process has ended.
type WaitResponse struct {
	ExitStatus uint32
	ExitedAt   time.Time
}

func (m *WaitResponse) fields(c *codec) {
	c.uint32(1, &m.ExitStatus)
	c.time(2, &m.ExitedAt)
}

// ConnectResponse tells the pids of shim and init.
type ConnectResponse struct {
	ShimPID uint32
	TaskPID uint32
	Version string
}

func (m *ConnectResponse) fields(c *codec) {
	c.uint32(1, &m.ShimPID)
	c.uint32(2, &m.TaskPID)
	c.string(3, &m.Version)
}

// ShutdownRequest ends the shim.
type ShutdownRequest struct {
	ID  string
	Now bool
}

func (m *ShutdownRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.bool(2, &m.Now)
}
