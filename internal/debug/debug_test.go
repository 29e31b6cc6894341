// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/telemetry"
)

// served is a server on a unix socket, and a client of it.
func served(t *testing.T, debugging bool) (m *Metrics, do func(method, path, body string, header ...string) (int, string), level *string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bd") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "d", "s")
	m, level = NewMetrics("v9"), new(string)
	log := slog.New(slog.DiscardHandler)
	denied := uint64(5)
	s, err := Listen(Config{Address: "unix://" + path, Debug: debugging, Log: log}, m, Sources{
		Pods: pod.New(pod.Config{}, pod.Parts{}, log), Calls: telemetry.NewCalls(), Images: func() []image.Image { return make([]image.Image, 3) },
		FSInfo: func(context.Context) (image.FSInfo, error) {
			return image.FSInfo{UsedBytes: 1, AvailableBytes: 2, CapacityBytes: 4, InodesFree: 8}, nil
		},
		ShimMemory: func([]string) (int, uint64) { return 2, 3 << 20 }, Denials: func() (uint64, error) { return denied, nil },
		SetLevel: func(l string) error {
			if l != "debug" {
				return errors.New("no such level")
			}
			*level = l
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	return m, func(method, path, body string, header ...string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://berth"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}, level
}

func TestMetricsAreServed(t *testing.T) {
	m, do, _ := served(t, false)
	m.Observe(t.Context(), "RunPodSandbox", codes.OK, 300*time.Millisecond)
	m.Observe(t.Context(), "RunPodSandbox", codes.Internal, time.Second)
	m.Observe(t.Context(), "GetContainerEvents", codes.Canceled, time.Hour)
	m.Stage(t.Context(), "sandbox", "network", false, 30*time.Millisecond, nil)
	m.Stage(t.Context(), "sandbox", "network", false, 30*time.Millisecond, errors.New("no address"))
	m.Stage(t.Context(), "container", "task", true, time.Millisecond, nil)
	m.LogDropped(77)
	m.StreamOpened("exec", 30*time.Millisecond)
	m.Pulled(image.PullReport{Context: t.Context(), Took: time.Second, Bytes: 1000, Layers: 5, Present: 3})
	m.Pulled(image.PullReport{Context: t.Context(), Took: time.Millisecond})
	m.Pulled(image.PullReport{Context: t.Context(), Took: time.Second, Bytes: 1, Layers: 5, Err: errors.New("no registry")})
	m.Collected(time.Second, nil)
	m.Recovered(2 * time.Second)
	code, text := do("GET", "/metrics", "")
	if code != http.StatusOK {
		t.Fatalf("got %d %s", code, text)
	}
	for _, want := range []string{
		`container_runtime_cri_operations_total{code="OK",operation="RunPodSandbox"} 1`,
		`container_runtime_cri_operations_errors_total{code="Internal",operation="RunPodSandbox"} 1`,
		`container_runtime_cri_operations_latency_seconds_bucket{code="OK",operation="RunPodSandbox",le="0.25"} 0`,
		`container_runtime_cri_operations_latency_seconds_bucket{code="OK",operation="RunPodSandbox",le="0.5"} 1`,
		`berth_stage_duration_seconds_count{action="setup",object="sandbox",result="ok",stage="network"} 1`,
		`berth_stage_duration_seconds_count{action="setup",object="sandbox",result="error",stage="network"} 1`,
		`berth_stage_duration_seconds_count{action="release",object="container",result="ok",stage="task"} 1`,
		`berth_log_dropped_bytes_total 77`, `berth_stream_open_duration_seconds_count{kind="exec"} 1`, `berth_image_pull_bytes_total 1001`,
		`berth_image_pull_duration_seconds_count{result="ok"} 1`, `berth_image_pull_duration_seconds_count{result="present"} 1`,
		`berth_image_pull_duration_seconds_count{result="error"} 1`, `berth_image_layers_total{source="fetched"} 2`, `berth_image_layers_total{source="present"} 3`,
		`berth_image_gc_duration_seconds_count{result="ok"} 1`, `berth_shims 2`, `berth_shim_memory_bytes 3.145728e+06`, `berth_seccomp_denials_total 5`, `berth_recovery_seconds 2`, `berth_sandboxes{state="ready"} 0`, `berth_containers{state="running"} 0`,
		`berth_images 3`, `berth_image_filesystem_available_bytes 2`, `berth_operations_in_flight 0`, `process_cpu_seconds_total`, `go_goroutines`,
		`version="v9"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %s", want)
		}
	}
	if strings.Contains(text, `latency_seconds_count{code="Canceled",operation="GetContainerEvents"}`) {
		t.Error("a stream's length counts as latency")
	}
	if code, _ := do("GET", "/healthz", ""); code != http.StatusOK {
		t.Errorf("health: %d", code)
	}
}

func TestExemplarsNameTheTrace(t *testing.T) {
	m, do, _ := served(t, false)
	id := trace.TraceID{1, 2, 3}
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled}))
	m.Observe(ctx, "RunPodSandbox", codes.OK, 300*time.Millisecond)
	m.Stage(ctx, "sandbox", "network", false, 30*time.Millisecond, nil)
	m.PluginRan(ctx, "bridge", "ADD", 30*time.Millisecond, nil)
	m.PluginRan(t.Context(), "bridge", "ADD", time.Minute, fmt.Errorf("killed: %w", context.DeadlineExceeded))
	if _, text := do("GET", "/metrics", ""); strings.Contains(text, id.String()) {
		t.Error("exemplars in a format that has none")
	}
	_, text := do("GET", "/metrics", "", "Accept", "application/openmetrics-text;version=1.0.0")
	for _, want := range []string{
		`container_runtime_cri_operations_latency_seconds_bucket{code="OK",operation="RunPodSandbox",le="0.5"} 1 # {trace_id="` + id.String() + `"} 0.3`,
		`berth_stage_duration_seconds_bucket{action="setup",object="sandbox",result="ok",stage="network",le="0.05"} 1 # {trace_id="` + id.String() + `"} 0.03`,
		`berth_cni_plugin_duration_seconds_bucket{command="ADD",plugin="bridge",result="ok",le="0.05"} 1 # {trace_id="` + id.String() + `"} 0.03`,
		`berth_cni_plugin_duration_seconds_count{command="ADD",plugin="bridge",result="timeout"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %s", want)
		}
	}
}

func TestDebuggingIsServedOnlyWhenAskedFor(t *testing.T) {
	paths := []struct{ method, path, body string }{{"GET", "/debug/pprof/goroutine?debug=2", ""}, {"GET", "/debug/operations", ""}, {"GET", "/debug/state", ""},
		{"PUT", "/debug/log-level", "debug\n"}}
	_, do, level := served(t, false)
	for _, p := range paths {
		if code, _ := do(p.method, p.path, p.body); code != http.StatusNotFound {
			t.Errorf("%s: %d", p.path, code)
		}
	}
	if *level != "" {
		t.Error("the level is changed")
	}
	_, do, level = served(t, true)
	for _, p := range paths {
		if code, text := do(p.method, p.path, p.body); code != http.StatusOK {
			t.Errorf("%s: %d %s", p.path, code, text)
		}
	}
	if *level != "debug" {
		t.Error("the level is not changed")
	}
	if code, text := do("PUT", "/debug/log-level", "loud"); code != http.StatusBadRequest || !strings.Contains(text, "no such level") {
		t.Errorf("%d %s", code, text)
	}
	if code, _ := do("POST", "/metrics", ""); code != http.StatusMethodNotAllowed {
		t.Errorf("got %d", code)
	}
}

func TestAnAddressThatCannotBeTaken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"a file":         {Address: "unix://" + file},
		"no certificate": {Address: "127.0.0.1:0", CertFile: file, KeyFile: file},
	} {
		c.Log = slog.New(slog.DiscardHandler)
		if _, err := Listen(c, NewMetrics("v9"), Sources{}); err == nil || !strings.Contains(err.Error(), c.Address) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
