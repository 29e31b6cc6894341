// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
)

// overSocket asks an HTTP server on a unix socket.
func overSocket(t *testing.T, socket string) func(path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	return func(path string) string {
		t.Helper()
		r, err := client.Get("http://berth" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		raw, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v: %.500s", path, r.StatusCode, err, raw)
		}
		return string(raw)
	}
}

// sample is the value of one series, NaN-free; -1 if it is not there.
func sample(t *testing.T, text, series string) float64 {
	t.Helper()
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), series+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return -1
}

func TestTheMetricsEndpointCountsWhatWasDone(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	dir, err := os.MkdirTemp("", "bm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "m.sock")
	k := node(t, daemon.Spec{Config: fmt.Sprintf("[metrics]\naddress = %q\ndebug = true\n", "unix://"+socket)})
	get := overSocket(t, socket)
	p := k.RunPod(k.PodConfig("nobodys-label"))
	c := p.Start(k.Forever("main"))
	p.Start(k.Shell("ended", "true")).WaitExit()
	_, err = k.D.Runtime.ContainerStatus(k.Ctx(), &cri.ContainerStatusRequest{ContainerId: strings.Repeat("0", 64)})
	wantError(t, err, []codes.Code{codes.NotFound})
	text := get("/metrics")
	for series, want := range map[string]float64{
		`container_runtime_cri_operations_total{code="OK",operation="RunPodSandbox"}`:                1,
		`container_runtime_cri_operations_total{code="OK",operation="StartContainer"}`:               2,
		`container_runtime_cri_operations_errors_total{code="NotFound",operation="ContainerStatus"}`: 1,
		`container_runtime_cri_operations_latency_seconds_count{code="OK",operation="PullImage"}`:    1,
		`berth_sandboxes{state="ready"}`:    1,
		`berth_containers{state="running"}`: 1,
		`berth_containers{state="exited"}`:  1,
		`berth_images`:                      1,
		`berth_stage_duration_seconds_count{action="setup",object="sandbox",result="ok",stage="network"}`: 1,
		`berth_stage_duration_seconds_count{action="setup",object="container",result="ok",stage="task"}`:  2,
		`berth_operations_in_flight`: 0,
		`berth_shims`:                1,
		`berth_image_pull_duration_seconds_count{result="ok"}`: 1,
		`berth_image_layers_total{source="fetched"}`:           1,
		`berth_image_layers_total{source="present"}`:           0,
	} {
		if got := sample(t, text, series); got != want {
			t.Errorf("%s: got %v, want %v", series, got, want)
		}
	}
	if sample(t, text, "berth_shim_memory_bytes") < 100<<10 || sample(t, text, "berth_image_pull_bytes_total") < 1000 {
		t.Errorf("shims' memory or pulled bytes:\n%.3000s", text)
	}
	if n := sample(t, text, `berth_cni_plugin_duration_seconds_count{command="ADD",plugin="bridge",result="ok"}`); n != 1 {
		t.Errorf("%v runs of the bridge plugin", n)
	}
	if sample(t, text, "berth_image_filesystem_capacity_bytes") <= 0 || sample(t, text, "berth_recovery_seconds") < 0 || sample(t, text, "go_goroutines") <= 0 {
		t.Errorf("something is missing:\n%.3000s", text)
	}
	// However many pods there are: no label is taken from them.
	for _, secret := range []string{p.ID, c.ID, "nobodys-label"} {
		if strings.Contains(text, secret) {
			t.Errorf("a series for %s", secret)
		}
	}
	var state []struct {
		ID         string
		Ready      bool
		Containers []struct{ ID, State string }
	}
	if err := json.Unmarshal([]byte(get("/debug/state")), &state); err != nil || len(state) != 1 || state[0].ID != p.ID || len(state[0].Containers) != 2 {
		t.Errorf("state: %v, %v", state, err)
	}
	contains(t, "operations", get("/debug/operations"), "[")
	contains(t, "goroutines", get("/debug/pprof/goroutine?debug=2"), "goroutine ")
}

func TestMetricsAreOffByDefault(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := start(t, daemon.Spec{NoNetwork: true})
	if strings.Contains(k.D.Log(), "serving metrics") {
		t.Error("metrics are served though nobody asked for it")
	}
}
