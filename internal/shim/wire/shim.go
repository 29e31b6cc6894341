// SPDX-License-Identifier: Apache-2.0

package wire

import "time"

// CreateOptions travels in CreateTaskRequest.Options; its fields are explained in shim.proto.
type CreateOptions struct {
	Runtime       string
	RuntimeRoot   string
	SystemdCgroup bool
	LogPath       string
	Deferred      bool
	Native        bool
	Stdin         bool
	StdinOnce     bool
	LogFolder     string
	IOUID, IOGID  uint32
	RuntimeArgs   []string
}

func (m *CreateOptions) fields(c *codec) {
	c.string(1, &m.Runtime)
	c.string(2, &m.RuntimeRoot)
	c.bool(3, &m.SystemdCgroup)
	c.string(4, &m.LogPath)
	c.bool(5, &m.Deferred)
	c.bool(6, &m.Native)
	c.bool(7, &m.Stdin)
	c.bool(8, &m.StdinOnce)
	c.string(9, &m.LogFolder)
	c.uint32(10, &m.IOUID)
	c.uint32(11, &m.IOGID)
	c.strings(12, &m.RuntimeArgs)
}

// Phase is berth.shim.v1.Status.
type Phase int32

// Phases of a task.
const (
	PhaseCreated Phase = 1
	PhaseRunning Phase = 2
	PhaseStopped Phase = 3
)

// InfoResponse tells what a daemon needs to take over a shim.
type InfoResponse struct {
	Version string
	PID     int32
	Tasks   []TaskInfo
}

func (m *InfoResponse) fields(c *codec) {
	c.string(1, &m.Version)
	c.int32(2, &m.PID)
	list(c, 3, &m.Tasks)
}

// TaskInfo is one container.
type TaskInfo struct {
	ID              string
	Status          Phase
	PID             int32
	ExitStatus      uint32
	ExitedAt        time.Time
	OOMKilled       bool
	LogBytesDropped uint64
}

func (m *TaskInfo) fields(c *codec) {
	c.string(1, &m.ID)
	c.int32(2, (*int32)(&m.Status))
	c.int32(3, &m.PID)
	c.uint32(4, &m.ExitStatus)
	c.time(5, &m.ExitedAt)
	c.bool(6, &m.OOMKilled)
	c.uint64(7, &m.LogBytesDropped)
}

// ExecRequest starts a process in a container.
type ExecRequest struct {
	ID      string
	ExecID  string
	Process []byte
	Stdin   bool
	Stdout  bool
	Stderr  bool
	Lease   bool
}

func (m *ExecRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.ExecID)
	c.bytes(3, &m.Process)
	c.bool(4, &m.Stdin)
	c.bool(5, &m.Stdout)
	c.bool(6, &m.Stderr)
	c.bool(7, &m.Lease)
}
