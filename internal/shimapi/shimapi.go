// SPDX-License-Identifier: Apache-2.0

// Package shimapi is what berth-shim and its daemon agree on beside the ttrpc services: the names in a
// pod's state folder, the facts on disk and the framing of the stdio socket. Only internal/runtime,
// internal/shim, and sweeps that look for what a killed shim left behind use it.
package shimapi

import "path/filepath"

// Names in a pod's state folder.
const (
	// SocketName is the ttrpc socket: containerd.task.v3.Task and berth.shim.v1.Shim.
	SocketName = "shim.sock"
	// StdioSocketName is the socket for raw process streams, see StreamHeader.
	StdioSocketName = "stdio.sock"
	// LogName is the file that the shim's stderr goes to.
	LogName = "shim.log"
)

// Names in a container's bundle, which is the folder of the container's ID in the pod's state folder.
const (
	// ConfigName is the OCI runtime-spec configuration.
	ConfigName = "config.json"
	// RootfsName is the mount point of the container's root file system.
	RootfsName = "rootfs"
	// InitPIDName is the pid file that the OCI runtime writes.
	InitPIDName = "init.pid"
	// InitFactName is the file of the InitFact.
	InitFactName = "init.json"
	// TaskPIDName is the file, in a foreign container's folder of state, with the process ID of its init.
	TaskPIDName = "task.pid"
	// CheckpointImages is the folder of CRIU's images in the one that a checkpoint is written to; its logs are beside it.
	CheckpointImages = "checkpoint"
	// CRIUConfig is a file beside it, if there is one: options for CRIU, at the checkpoint and when it is restored.
	CRIUConfig = "criu.conf"
	// ExitFactName is the file of the ExitFact.
	ExitFactName = "exit.json"
)

// The daemon listens before it starts the shim and hands the listeners over as these descriptors, so
// that it can connect without waiting for the shim to be ready.
const (
	ServiceFD = 3
	StdioFD   = 4
)

// Type URLs of the messages that travel as Any in Task v3's requests.
const (
	// CreateOptionsTypeURL names shimpb.CreateOptions in CreateTaskRequest.options.
	CreateOptionsTypeURL = "berth.shim.v1.CreateOptions"
	// LinuxResourcesTypeURL names the JSON of an OCI runtime-spec LinuxResources in
	// UpdateTaskRequest.resources.
	LinuxResourcesTypeURL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
	// ProcessTypeURL names the JSON of an OCI runtime-spec Process in ExecProcessRequest.spec.
	ProcessTypeURL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
)

// Names of the ttrpc services, for clients that build calls by hand.
const (
	TaskServiceName = "containerd.task.v3.Task"
	ShimServiceName = "berth.shim.v1.Shim"
)

// SocketPath returns the path of the ttrpc socket of the pod whose state folder is dir.
func SocketPath(dir string) string { return filepath.Join(dir, SocketName) }

// StdioSocketPath returns the path of the stream socket of the pod whose state folder is dir.
func StdioSocketPath(dir string) string { return filepath.Join(dir, StdioSocketName) }

// LogPath returns the path of the shim's own log of the pod whose state folder is dir.
func LogPath(dir string) string { return filepath.Join(dir, LogName) }

// BundlePath returns the bundle of container id of the pod whose state folder is dir.
func BundlePath(dir, id string) string { return filepath.Join(dir, id) }

// Environment is the whole environment that the shim is to be started with, beside PATH and what the OCI runtime needs
// of it. Its Go runtime reads the rest before the first line of the program: one thread at a time is enough to copy output,
// and each one more has caches of its own; the heap stays close to what is in use. Each variable that is handed down without need
// costs every pod, too.
func Environment() []string { return []string{"GOMAXPROCS=1", "GOGC=25"} }
