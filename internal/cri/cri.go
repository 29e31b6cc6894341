// SPDX-License-Identifier: Apache-2.0

// Package cri serves the Container Runtime Interface v1: it validates what a request must have, calls the domain and converts the
// answer. It decides nothing and keeps no state; daemon registers it with its gRPC server.
package cri

import (
	"context"
	"log/slog"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/stats"
	"github.com/berth-run/berth/internal/telemetry"
)

// Images is what the ImageService needs. Implementation: image.Store.
type Images interface {
	Pull(ctx context.Context, r image.PullRequest) (image.Image, error)
	Status(ref string) (image.Image, error)
	List() []image.Image
	Remove(ctx context.Context, ref string) error
	FSInfo(ctx context.Context) (image.FSInfo, error)
	Info(ctx context.Context, ref string) (map[string]any, error)
	// WritableFolders are that of a container's writable layer, and that of its anonymous volumes, which may be missing.
	WritableFolders(container string) []string
}

// Stats is what the statistics need. Implementation: stats.Collector. usage.ErrGone: there is no such cgroup.
type Stats interface {
	Container(id, cgroupsPath string) (stats.Usage, error)
	Pod(id, parent string) (stats.Usage, error)
	ContainerDetail(id, cgroupsPath string) (stats.Detail, error)
	PodDetail(id, parent string) (stats.Detail, error)
	// Processes looks at a container's processes, of which main is the first.
	Processes(cgroupsPath string, main int) (stats.Processes, error)
	// Network reads the counters of a pod's interfaces, without lo. It may keep the network namespace alive until Keep.
	Network(id, pin string) ([]netns.Interface, error)
	// Layer is what a writable layer takes as last counted; false: not counted yet.
	Layer(id string, dirs ...string) (stats.Layer, bool)
	// Reported asks runtimes what containers in sandboxes use; what they do not tell in time is what they told before, or missing.
	Reported(ctx context.Context, questions []stats.Question) map[string]stats.Usage
	// Keep forgets all but the given pods and containers.
	Keep(ids map[string]bool)
}

// Handler is a runtime handler as Status reports it.
type Handler struct {
	Name                              string
	RecursiveReadOnly, UserNamespaces bool
}

// Condition is a condition of the node's that Status reports beside those that the kubelet acts on. Without a Reason it is true.
type Condition struct{ Type, Reason, Message string }

// Streams hands out the URLs of streaming sessions. Implementation: stream.Server.
type Streams interface {
	Exec(r *runtimeapi.ExecRequest) (url string, err error)
	Attach(r *runtimeapi.AttachRequest) (url string, err error)
	PortForward(r *runtimeapi.PortForwardRequest) (url string, err error)
}

// Config is what a Server must know; daemon fills it.
type Config struct {
	Pods   *pod.Manager
	Images Images
	Stats  Stats
	// Streams serves Exec, Attach and PortForward.
	Streams Streams
	// InFlight lists the requests that are not answered yet, the oldest first.
	InFlight func() []telemetry.Call
	// NetworkReady is nil, or why pods cannot have a network now.
	NetworkReady func() error
	// Version is Berth's own.
	Version string
	// CgroupDriver is "cgroupfs" or "systemd".
	CgroupDriver string
	// Handlers lists the runtime handlers, the default one also under the name "".
	Handlers func(ctx context.Context) []Handler
	// Conditions lists what else there is to say of the node; nil: nothing.
	Conditions func() []Condition
	// Effective is the configuration in force, for verbose status; it holds no secrets.
	Effective func() any
	Log       *slog.Logger
}

// Server implements RuntimeService and ImageService.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	c Config
}

// New makes a Server.
func New(c Config) *Server { return &Server{c: c} }
