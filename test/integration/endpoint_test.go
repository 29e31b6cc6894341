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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// onSocket is an HTTP client of a unix socket.
func onSocket(t *testing.T, socket string) *http.Client {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// overSocket asks an HTTP server on a unix socket.
func overSocket(t *testing.T, socket string) func(path string) string {
	t.Helper()
	client := onSocket(t, socket)
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

// endpoint is the path for the socket of a metrics and debug endpoint, and the configuration that asks for it.
func endpoint(tb testing.TB) (socket, config string) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "bm")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "m.sock")
	return socket, fmt.Sprintf("[metrics]\naddress = %q\ndebug = true\n", "unix://"+socket)
}

// watchedNode is a node with such an endpoint.
func watchedNode(t *testing.T) (k *kubelet.Kubelet, socket string) {
	t.Helper()
	socket, config := endpoint(t)
	return node(t, daemon.Spec{Config: config}), socket
}

func TestTheMetricsEndpointCountsWhatWasDone(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k, socket := watchedNode(t)
	get := overSocket(t, socket)
	p := k.RunPod(k.PodConfig("nobodys-label"))
	c := p.Start(k.Forever("main"))
	p.Start(k.Shell("ended", "true")).WaitExit()
	_, err := k.D.Runtime.ContainerStatus(k.Ctx(), &cri.ContainerStatusRequest{ContainerId: strings.Repeat("0", 64)})
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

// TestALiveDaemonIsLookedInto changes the log's level and back, and finds a call that is not answered yet with its age.
func TestALiveDaemonIsLookedInto(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k, socket := watchedNode(t)
	c := k.RunPod(k.PodConfig("patient")).Start(k.Forever("main"))

	ctx, leave := context.WithCancel(k.Ctx())
	left := make(chan error, 1)
	go func() {
		_, err := k.D.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "1000"}})
		left <- err
	}()
	get := overSocket(t, socket)
	var before float64
	for range 2 { // it grows older
		kubelet.Eventually(t, 10*time.Second, func() string {
			text := get("/debug/operations")
			var calls []struct {
				Method string
				Age    float64 `json:"age_ms"`
			}
			if err := json.Unmarshal([]byte(text), &calls); err != nil {
				t.Fatal(err, text)
			}
			for _, call := range calls {
				if call.Method == "ExecSync" && call.Age > before {
					before = call.Age
					return ""
				}
			}
			return "no ExecSync older than before in " + text
		})
	}
	leave()
	if err := <-left; err == nil {
		t.Error("the call was answered")
	}

	client := onSocket(t, socket)
	level := func(to string) {
		t.Helper()
		r, err := http.NewRequest(http.MethodPut, "http://berth/debug/log-level", strings.NewReader(to))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		equal(t, "status of "+to, answer.StatusCode, http.StatusOK)
	}
	lines := func() int { // calls that only read are for the level debug
		before := len(k.D.Log())
		r, err := k.D.Runtime.Version(k.Ctx(), &cri.VersionRequest{})
		kubelet.Must(k, r, err)
		return strings.Count(k.D.Log()[before:], "Version")
	}
	for to, want := range map[string]bool{"debug": true, "info": false} {
		level(to)
		if got := lines(); (got > 0) != want {
			t.Errorf("level %s: %d lines of a call that reads", to, got)
		}
	}
}

// TestStatsAndTopOfALiveNode runs what people type.
func TestStatsAndTopOfALiveNode(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("busy")).Start(k.Shell("worker", "head -c 300000 /dev/zero > /file; echo ready; while :; do :; done"))
	c.WaitOutput("ready")
	berth := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(k.D.Spec.Bin+"/berth", append([]string{"--socket", k.D.Socket}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return string(out)
	}
	stats := strings.Fields(strings.Split(berth("stats"), "\n")[1])
	if cpu, err := strconv.ParseFloat(stats[2], 64); err != nil || cpu <= 0 || cpu > 110 || stats[1] != "worker" || !strings.HasPrefix(c.ID, stats[0]) {
		t.Errorf("stats: %q, %v", stats, err)
	}
	top := strings.Split(strings.TrimSpace(berth("top", "-n", "2", "-d", "1s", "--sort", "cpu")), "\n")
	row := strings.Fields(top[len(top)-1])
	if cpu, err := strconv.ParseFloat(row[3], 64); err != nil || cpu <= 0 || cpu > 110 || row[1] != "busy" || row[2] != "worker" || row[len(row)-1] != "0" {
		t.Errorf("top: %q, %v", top, err)
	}
}
