// SPDX-License-Identifier: Apache-2.0

// Package integration tests Berth over its socket, with the real kernel, runc, CNI plugins and a registry.
// After each test nothing of it may be left on the machine. It needs root and the programs in bin/ (make).
//
// BERTH_TEST_RUNTIME=containerd runs what is equal on containerd: that tells a wrong test from a wrong runtime.
package integration

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// images serves the whole test run; tests that inject faults start their own.
var images *registry.Server

var busyboxRef, pauseRef string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("integration tests are left out with -short")
		return
	}
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "integration tests:", err)
		os.Exit(1)
	}
	complaints := kubelet.KeepComplaints()
	code := m.Run()
	if code != 0 {
		complaints(os.Stderr)
	}
	images.Close()
	os.Exit(code)
}

func setUp() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("need root (or -short)")
	}
	var err error
	if images, busyboxRef, err = registry.NewWithBusybox(); err != nil {
		return err
	}
	if !onContainerd() {
		return nil
	}
	t, err := registry.BusyboxTree()
	if err != nil {
		return err
	}
	pause := registry.Spec{Layers: []registry.Tree{t}}
	pause.Config.Entrypoint = []string{"sleep", "2147483647"}
	im, err := registry.Build(pause)
	if err != nil {
		return err
	}
	pauseRef, _, err = images.Push("pause:1", im)
	return err
}

func onContainerd() bool { return os.Getenv("BERTH_TEST_RUNTIME") == string(daemon.Containerd) }

// berthOnly leaves a test out where containerd is known to behave differently.
func berthOnly(t *testing.T) {
	t.Helper()
	if onContainerd() {
		t.Skip("containerd behaves differently here")
	}
}

// start runs a daemon for one test.
func start(t *testing.T, spec daemon.Spec) *kubelet.Kubelet {
	t.Helper()
	if onContainerd() {
		spec.Kind, spec.PauseImage = daemon.Containerd, pauseRef
	}
	d := daemon.Start(t, spec)
	k := &kubelet.Kubelet{T: t, D: d}
	if !spec.NoNetwork {
		if err := d.WaitNetwork(k.Ctx(), true); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// node runs a daemon that has the image which containers are made of.
func node(t *testing.T, spec daemon.Spec) *kubelet.Kubelet {
	t.Helper()
	k := start(t, spec)
	k.Image = k.Pull(busyboxRef)
	return k
}

func contains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s lacks %q: %.2000s", what, p, text)
		}
	}
}

func equal[V comparable](t *testing.T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// wantError is kubelet.WantError; what the texts say is Berth's own.
func wantError(t *testing.T, err error, want []codes.Code, parts ...string) {
	t.Helper()
	if onContainerd() {
		parts = nil
	}
	kubelet.WantError(t, err, want, parts...)
}
