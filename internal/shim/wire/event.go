// SPDX-License-Identifier: Apache-2.0

package wire

import "time"

// Envelope is an event on its way to containerd (containerd.types.Envelope).
type Envelope struct {
	Timestamp time.Time
	Namespace string
	Topic     string
	Event     Any
}

func (m *Envelope) fields(c *codec) {
	c.time(1, &m.Timestamp)
	c.string(2, &m.Namespace)
	c.string(3, &m.Topic)
	c.message(4, &m.Event)
}

// ForwardRequest hands an event over (containerd.services.events.ttrpc.v1).
type ForwardRequest struct{ Envelope Envelope }

func (m *ForwardRequest) fields(c *codec) { c.message(1, &m.Envelope) }

// TaskCreate tells of a new container (containerd.events, like all below).
type TaskCreate struct {
	ContainerID string
	Bundle      string
	Rootfs      []Mount
	IO          TaskIO
	PID         uint32
}

func (m *TaskCreate) fields(c *codec) {
	c.string(1, &m.ContainerID)
	c.string(2, &m.Bundle)
	list(c, 3, &m.Rootfs)
	c.optional(4, &m.IO)
	c.uint32(6, &m.PID)
}

// TaskIO are the streams of a TaskCreate.
type TaskIO struct {
	Stdin    string
	Stdout   string
	Stderr   string
	Terminal bool
}

func (m *TaskIO) fields(c *codec) {
	c.string(1, &m.Stdin)
	c.string(2, &m.Stdout)
	c.string(3, &m.Stderr)
	c.bool(4, &m.Terminal)
}

// TaskStart tells that a container's program runs.
type TaskStart struct {
	ContainerID string
	PID         uint32
}

func (m *TaskStart) fields(c *codec) {
	c.string(1, &m.ContainerID)
	c.uint32(2, &m.PID)
}

// TaskExit tells how a process ended; ID is the container's own for its init.
type TaskExit struct {
	ContainerID string
	ID          string
	PID         uint32
	ExitStatus  uint32
	ExitedAt    time.Time
}

func (m *TaskExit) fields(c *codec) {
	c.string(1, &m.ContainerID)
	c.string(2, &m.ID)
	c.uint32(3, &m.PID)
	c.uint32(4, &m.ExitStatus)
	c.time(5, &m.ExitedAt)
}

// TaskDelete tells that a process is forgotten; ID is empty for a container's init.
type TaskDelete struct {
	ContainerID string
	PID         uint32
	ExitStatus  uint32
	ExitedAt    time.Time
	ID          string
}

func (m *TaskDelete) fields(c *codec) {
	c.string(1, &m.ContainerID)
	c.uint32(2, &m.PID)
	c.uint32(3, &m.ExitStatus)
	c.time(4, &m.ExitedAt)
	c.string(5, &m.ID)
}

// TaskExec is TaskExecAdded (without PID) and TaskExecStarted.
type TaskExec struct {
	ContainerID string
	ExecID      string
	PID         uint32
}

func (m *TaskExec) fields(c *codec) {
	c.string(1, &m.ContainerID)
	c.string(2, &m.ExecID)
	c.uint32(3, &m.PID)
}

// TaskEvent is each event that only names a container: TaskOOM, TaskPaused, TaskResumed.
type TaskEvent struct{ ContainerID string }

func (m *TaskEvent) fields(c *codec) { c.string(1, &m.ContainerID) }
