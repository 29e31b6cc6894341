// SPDX-License-Identifier: Apache-2.0

// Package conformance runs the CRI validation suite (critest of kubernetes-sigs/cri-tools) against a fresh daemon.
// `make critest CRITEST=/path/to/critest [FIXTURES=host:port]` is its caller; `make test` leaves it out, for the suite's images
// come from registries that are not everywhere.
package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/test/daemon"
)

// registries are those that the suite's images are named after; with FIXTURES one server stands for them all.
var registries = []string{"registry.k8s.io", "gcr.io", "k8s.gcr.io", "docker.io"}

// suiteTime is what a run of the whole suite may take: it needs two minutes on an idle machine of two cores.
const suiteTime = 20 * time.Minute

func TestValidationSuite(t *testing.T) {
	critest := os.Getenv("CRITEST")
	if critest == "" {
		t.Skip("no suite is given: make critest CRITEST=/path/to/critest")
	}
	dir, err := os.MkdirTemp("", "nri") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "nri.sock")
	d := daemon.Start(t, daemon.Spec{Config: fmt.Sprintf("\n[nri]\nenable = true\nsocket = %q\nplugin_dir = %q\nplugin_config_dir = %[2]q\n", socket, dir)})
	suite(t, d, critest, "-nri-socket="+socket)
}

// TestContainerdWithOurShim is the suite against containerd, whose containers our shim runs: what its own shim passes, ours must, too.
func TestContainerdWithOurShim(t *testing.T) {
	critest := os.Getenv("CRITEST")
	if critest == "" || os.Getenv("CRITEST_CONTAINERD") == "" {
		t.Skip("not asked for: CRITEST_CONTAINERD=1 make critest CRITEST=/path/to/critest, after make bin/containerd/containerd-shim-runc-v2")
	}
	bin, err := daemon.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("runtime_path = %q\n", filepath.Join(bin, "containerd-shim-berth-v1"))
	d := daemon.Start(t, daemon.Spec{Kind: daemon.Containerd, Runc: config, PauseImage: "registry.k8s.io/pause:3.10.1"})
	suite(t, d, critest)
}

// suite runs critest against a daemon.
func suite(t *testing.T, d *daemon.Daemon, critest string, more ...string) {
	t.Helper()
	if fixtures := os.Getenv("FIXTURES"); fixtures != "" {
		for _, registry := range registries {
			mirror(t, d.CertsDir, registry, fixtures)
		}
	}
	report := filepath.Join(t.TempDir(), "report.json")
	limit := daemon.Slow(suiteTime)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	args := []string{
		"-runtime-endpoint=unix://" + d.Socket, "-image-endpoint=unix://" + d.Socket, "-ginkgo.no-color", "-ginkgo.json-report=" + report,
		"-ginkgo.timeout=" + limit.String(),
	}
	args = append(append(args, more...), strings.Fields(os.Getenv("CRITEST_FLAGS"))...)
	cmd := exec.CommandContext(ctx, critest, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := d.WaitNetwork(ctx, true); err != nil {
		t.Fatal(err)
	}
	failed := cmd.Run()
	summarize(t, report)
	if failed != nil {
		t.Errorf("%s: %v", critest, failed)
	}
}

// mirror sends all requests for a registry to a server that speaks plain HTTP.
func mirror(t *testing.T, certs, registry, server string) {
	t.Helper()
	text := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+server, "http://"+server)
	dir := filepath.Join(certs, registry)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// summarize prints what did not pass and why, and the closing line.
func summarize(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeText, State     string
			LeafNodeType            string
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		t.Fatal(err)
	}
	count := make(map[string]int)
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			if spec.LeafNodeType != "It" {
				continue
			}
			count[spec.State]++
			name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " / ")
			reason, _, _ := strings.Cut(spec.Failure.Message, "\n")
			switch spec.State {
			case "passed", "pending":
			case "skipped":
				fmt.Printf("skipped: %s: %s\n", name, reason)
			default:
				t.Errorf("%s: %s: %.1000s", spec.State, name, spec.Failure.Message)
			}
		}
	}
	passed, skipped := count["passed"], count["skipped"]+count["pending"]
	delete(count, "passed")
	delete(count, "skipped")
	delete(count, "pending")
	failed := 0
	for _, n := range count {
		failed += n
	}
	if passed == 0 {
		t.Error("no spec was run")
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
}
