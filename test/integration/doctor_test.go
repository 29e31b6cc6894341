// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// TestDoctorOfANodeThatWorks looks at the machine of the tests, whose kernel settings and clock are what they are.
func TestDoctorOfANodeThatWorks(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	k.RunPod(k.PodConfig("patient")).Start(k.Forever("main"))
	cmd := exec.Command(k.D.Spec.Bin+"/berth", "doctor", "--config", k.D.ConfigPath, "--socket", k.D.Socket, "--network-test", "--registry", strings.Split(busyboxRef, "/")[0], "-o", "json")
	out, err := cmd.Output()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	var found []struct{ Check, Level, Text string }
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	well := map[string]bool{}
	for _, f := range found {
		switch f.Check {
		case "storage": // how full the disk is is the machine's matter
			if strings.Contains(f.Text, "open to everybody") {
				t.Errorf("storage: %s", f.Text)
			}
			continue
		case "kernel", "sysctl", "clock", "cgroups", "kubelet", "security":
			continue
		}
		well[f.Check] = true
		if f.Level != "ok" {
			t.Errorf("%s: %s: %s", f.Check, f.Level, f.Text)
		}
	}
	for _, check := range []string{"config", "socket", "status", "restart", "operations", "network", "runtime", "registry", "leftover"} {
		if !well[check] {
			t.Errorf("check %s says nothing in %s", check, out)
		}
	}
	contains(t, "doctor", string(out), "a scratch namespace got ["+k.D.Subnet4, "none for longer than")
}

// TestWorkWhoseCallerHasLeftIsToldWithItsStage asks as doctor does, which mentions what is older than half a minute.
func TestWorkWhoseCallerHasLeftIsToldWithItsStage(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	dir := script(t, "patient", previous+`
case $CNI_COMMAND in
ADD) while [ ! -e "$0.go" ]; do sleep 0.05; done; echo "$prev" ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac`)
	k := start(t, daemon.Spec{CNIBin: dir, NoNetwork: true})
	if err := k.D.WriteConflist(strings.Replace(k.D.Conflist(), `{"type": "portmap"`, `{"type": "patient"}, {"type": "portmap"`, 1)); err != nil {
		t.Fatal(err)
	}
	if err := k.D.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	config := k.PodConfig("left")
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(k.Ctx(), 300*time.Millisecond)
	defer cancel()
	_, err := k.D.Runtime.RunPodSandbox(short, &cri.RunPodSandboxRequest{Config: config})
	wantError(t, err, []codes.Code{codes.DeadlineExceeded})
	work := func() string {
		st, err := k.D.Runtime.Status(k.Ctx(), &cri.StatusRequest{Verbose: true})
		return kubelet.Must(k, st, err).Info["work"]
	}
	kubelet.Eventually(t, 5*time.Second, func() string {
		if w := work(); !strings.Contains(w, `"method":"RunPodSandbox"`) || !strings.Contains(w, config.Metadata.Name) || !strings.Contains(w, `"stage":"network for `) {
			return "work is " + w
		}
		return ""
	})
	if err := os.WriteFile(filepath.Join(dir, "patient.go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k.RunPod(config) // joins it
	equal(t, "work", work(), "[]")
}
