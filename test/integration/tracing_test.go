// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// spans is an OTLP collector.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	all map[string][]*otlp.Span // by trace
}

func (s *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range r.GetResourceSpans() {
		for _, scope := range of.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				id := hex.EncodeToString(span.GetTraceId())
				s.all[id] = append(s.all[id], span)
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (s *spans) of(trace string) map[string]*otlp.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*otlp.Span{}
	for _, span := range s.all[trace] {
		out[span.GetName()] = span
	}
	return out
}

func (s *spans) traces() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// collect serves an OTLP collector until the test ends.
func collect(t *testing.T) (*spans, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, server, served := &spans{all: map[string][]*otlp.Span{}}, grpc.NewServer(), make(chan error, 1)
	collector.RegisterTraceServiceServer(server, s)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

func TestTheStartOfAPodIsOneTrace(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	got, endpoint := collect(t)
	dir, err := os.MkdirTemp("", "bt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "m.sock")
	k := node(t, daemon.Spec{Config: fmt.Sprintf("[tracing]\nendpoint = %q\ninsecure = true\n[metrics]\naddress = %q\n", endpoint, "unix://"+socket)})
	var tree registry.Tree
	tree.Dir("only-here", 0o755)
	built, err := registry.Build(registry.Spec{Layers: []registry.Tree{tree}})
	if err != nil {
		t.Fatal(err)
	}
	image, _, err := images.Push("traced:1", built)
	if err != nil {
		t.Fatal(err)
	}
	const trace, root = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	k.Trace = "00-" + trace + "-" + root + "-01"
	k.Pull(image)
	p := k.RunPod(k.PodConfig("traced"))
	p.Start(k.Forever("main"))
	listed, err := k.D.Runtime.ListContainers(k.Ctx(), &cri.ListContainersRequest{})
	kubelet.Must(k, listed, err)
	want := []string{"runtime.v1.ImageService/PullImage", "image resolve", "image fetch manifest", "image fetch layer", "image unpack layer", "image record",
		"runtime.v1.RuntimeService/RunPodSandbox", "set up sandbox state", "set up sandbox namespaces", "set up sandbox network", "CNI ADD",
		"set up sandbox cgroup", "set up sandbox shim", "runtime.v1.RuntimeService/CreateContainer", "set up container bundle", "set up container rootfs",
		"runtime.v1.RuntimeService/StartContainer", "set up container task", "task create", "task start", "runtime.v1.RuntimeService/ListContainers"}
	kubelet.Eventually(t, 30*time.Second, func() string {
		have := got.of(trace)
		missing := slices.DeleteFunc(slices.Clone(want), func(name string) bool { return have[name] != nil })
		if len(missing) > 0 {
			return fmt.Sprintf("no spans %q", missing)
		}
		return ""
	})
	oneTree(t, got.of(trace), root)
	if n := got.traces(); n != 1 {
		t.Errorf("%d traces: what the caller does not sample is not traced by default", n)
	}
	text := overSocket(t, socket)("/metrics")
	contains(t, "metrics", text, `berth_stage_duration_seconds_count{action="setup",object="sandbox",result="ok",stage="network"} 1`)
	k.Trace = ""
}

// oneTree checks that all spans are below the caller's, and where they belong.
func oneTree(t *testing.T, all map[string]*otlp.Span, root string) {
	t.Helper()
	byID, parents := map[string]*otlp.Span{}, map[string]string{}
	for _, s := range all {
		byID[hex.EncodeToString(s.GetSpanId())] = s
	}
	for name, s := range all {
		parent := hex.EncodeToString(s.GetParentSpanId())
		switch above := byID[parent]; {
		case above != nil:
			parents[name] = above.GetName()
		case parent != root:
			t.Errorf("%s hangs in the air", name)
		case !strings.HasPrefix(name, "runtime.v1."):
			t.Errorf("%s is below the caller, not below its RPC", name)
		}
	}
	for name, parent := range map[string]string{"image fetch layer": "runtime.v1.ImageService/PullImage", "CNI ADD": "set up sandbox network",
		"set up sandbox network": "runtime.v1.RuntimeService/RunPodSandbox", "set up container rootfs": "runtime.v1.RuntimeService/CreateContainer",
		"set up container task": "runtime.v1.RuntimeService/StartContainer", "task start": "set up container task"} {
		if parents[name] != parent {
			t.Errorf("%s is below %q, want %q", name, parents[name], parent)
		}
	}
}
