// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/imageapi/imagepb"
)

// act is what one attempt of a container does: it writes lines to its log, and exits with a code unless it runs until it is stopped.
type act struct {
	lines   []string
	code    int32
	forever bool
}

type fakePod struct {
	*runtimeapi.PodSandbox
	config *runtimeapi.PodSandboxConfig
}

// fakeCRI is a runtime in memory, served on a socket. What was asked of it that changes something is in calls.
type fakeCRI struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	socket string

	mu         sync.Mutex // guards all below
	pods       []*fakePod
	containers []*runtimeapi.ContainerStatus
	podOf      map[string]string
	images     []*runtimeapi.Image
	calls      []string
	// refuseRestore has RestorePod fail.
	refuseRestore bool
	configs       []*runtimeapi.ContainerConfig
	auth          *runtimeapi.AuthConfig
	acts          map[string][]act // by container name, one for each attempt; the last is repeated
	fail          map[string]error // by method
	ends          bool             // the stream of events ends
	ours          bool             // it is Berth: it serves berth.v1.Images, too
	looks         int64            // how often statistics were asked for
	exec          func(*runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error)
}

func newFake(t *testing.T) *fakeCRI {
	t.Helper()
	dir, err := os.MkdirTemp("", "bc") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fakeCRI{socket: filepath.Join(dir, "s"), podOf: map[string]string{}, acts: map[string][]act{}, fail: map[string]error{}}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		f.mu.Lock()
		err := f.fail[filepath.Base(info.FullMethod)]
		f.mu.Unlock()
		if err != nil {
			return nil, err
		}
		return h(ctx, req)
	}))
	runtimeapi.RegisterRuntimeServiceServer(s, f)
	runtimeapi.RegisterImageServiceServer(s, f)
	imagepb.RegisterImagesServer(s, operator{fake: f})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return f
}

func (f *fakeCRI) called(format string, args ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeCRI) setFail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[method] = err
}

func (f *fakeCRI) history() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// id is an ID whose beginning tells what it is.
func id(start string) string { return start + strings.Repeat("0", 64-len(start)) }

func (f *fakeCRI) container(id string) (*runtimeapi.ContainerStatus, error) {
	for _, c := range f.containers {
		if c.Id == id {
			return c, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "container %q: not found", id)
}

func (f *fakeCRI) pod(id string) (*fakePod, error) {
	for _, p := range f.pods {
		if p.Id == id {
			return p, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "sandbox %q: not found", id)
}

func (f *fakeCRI) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeCRI) Status(_ context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	out := &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Reason: "NoNetworkConfig", Message: "no file in /etc/cni/net.d"},
	}}, RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}}}
	if r.Verbose {
		out.Info = map[string]string{"config": `{"root":"/var/lib/berth"}`}
	}
	return out, nil
}

func (f *fakeCRI) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, p := range f.pods {
		if s := r.GetFilter().GetState(); s == nil || s.State == p.State {
			out.Items = append(out.Items, p.PodSandbox)
		}
	}
	return out, nil
}

func (f *fakeCRI) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for _, c := range f.containers {
		want := r.GetFilter()
		if s := want.GetState(); s != nil && s.State != c.State || want.GetPodSandboxId() != "" && want.GetPodSandboxId() != f.podOf[c.Id] {
			continue
		}
		out.Containers = append(out.Containers, &runtimeapi.Container{Id: c.Id, PodSandboxId: f.podOf[c.Id], Metadata: c.Metadata, Image: c.Image,
			ImageRef: c.ImageRef, State: c.State, CreatedAt: c.CreatedAt, Labels: c.Labels})
	}
	return out, nil
}

func (f *fakeCRI) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	// The handler's answer is encoded after the lock is gone.
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{Id: c.Id, Metadata: c.Metadata, State: c.State, LogPath: c.LogPath,
		ExitCode: c.ExitCode, Reason: c.Reason, Image: c.Image}, Info: map[string]string{"pid": "42"}}, nil
}

func (f *fakeCRI) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.pod(r.PodSandboxId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{Id: p.Id, Metadata: p.Metadata, State: p.State,
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.1.0.7"}}}, nil
}

func (f *fakeCRI) ExecSync(_ context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return f.exec(r)
}

// addPod adds a pod that somebody made before.
func (f *fakeCRI) addPod(idStart, name string, state runtimeapi.PodSandboxState) {
	f.pods = append(f.pods, &fakePod{PodSandbox: &runtimeapi.PodSandbox{Id: id(idStart), State: state, CreatedAt: time.Now().Add(-3*time.Hour - time.Duration(len(f.pods))*time.Second).UnixNano(),
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name}, Labels: map[string]string{"app": name}}})
}

func (f *fakeCRI) addContainer(idStart, podStart, name string, state runtimeapi.ContainerState) *runtimeapi.ContainerStatus {
	c := &runtimeapi.ContainerStatus{Id: id(idStart), Metadata: &runtimeapi.ContainerMetadata{Name: name}, State: state,
		Image: &runtimeapi.ImageSpec{Image: "docker.io/library/busybox:1"}, CreatedAt: time.Now().Add(-2*time.Minute - time.Duration(len(f.containers))*time.Second).UnixNano()}
	f.containers = append(f.containers, c)
	f.podOf[c.Id] = id(podStart)
	return c
}
