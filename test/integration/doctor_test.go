// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/berth-run/berth/test/daemon"
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
		case "kernel", "sysctl", "clock", "storage", "cgroups", "kubelet", "security":
			continue
		}
		well[f.Check] = true
		if f.Level != "ok" {
			t.Errorf("%s: %s: %s", f.Check, f.Level, f.Text)
		}
	}
	for _, check := range []string{"config", "socket", "status", "operations", "network", "runtime", "registry", "leftover"} {
		if !well[check] {
			t.Errorf("check %s says nothing in %s", check, out)
		}
	}
	contains(t, "doctor", string(out), "a scratch namespace got ["+k.D.Subnet4, "none for longer than")
}
