// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// needAppArmor leaves a test out where the kernel says that it does not confine by AppArmor.
func needAppArmor(t *testing.T) {
	t.Helper()
	const file = "/sys/module/apparmor/parameters/enabled"
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.Skipf("this kernel has no AppArmor: there is no %s", file)
	case err != nil:
		t.Fatal(err)
	case !strings.HasPrefix(string(data), "Y"):
		t.Skipf("this kernel's AppArmor is off: %s says %q", file, data)
	}
}

func withAppArmor(c *cri.ContainerConfig, kind cri.SecurityProfile_ProfileType, ref string) *cri.ContainerConfig {
	c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	return c
}

// confinement is what the kernel says of process 1: a profile with its mode, or "unconfined".
func confinement(c *kubelet.Container) string {
	return strings.TrimSuffix(c.Exec("cat /proc/1/attr/current"), "\n")
}

func TestAppArmorConfinesAsAsked(t *testing.T) {
	needAppArmor(t)
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("apparmor"))
	byDefault := p.Start(k.Forever("nothing-asked"))
	equal(t, "nothing asked", confinement(byDefault), "berth-default (enforce)")
	equal(t, "an exec of it", byDefault.Exec("cat /proc/self/attr/current"), "berth-default (enforce)")
	equal(t, "default", confinement(p.Start(withAppArmor(k.Forever("default"), cri.SecurityProfile_RuntimeDefault, ""))), "berth-default (enforce)")
	equal(t, "unconfined", confinement(p.Start(withAppArmor(k.Forever("unconfined"), cri.SecurityProfile_Unconfined, ""))), "unconfined")

	name := "berth-test-" + k.D.Network
	_, err := p.TryCreate(withAppArmor(k.Forever("missing"), cri.SecurityProfile_Localhost, name))
	wantError(t, err, invalid, name, "not loaded")
	loadAppArmor(t, name)
	local := p.Start(withAppArmor(k.Forever("local"), cri.SecurityProfile_Localhost, name))
	equal(t, "local", confinement(local), name+" (enforce)")
	equal(t, "what it denies", local.Exec("touch /tmp/denied 2>/dev/null || echo denied; touch /tmp/other && echo ok"), "denied\nok")
	old := k.Forever("old-field")
	old.Linux.SecurityContext.ApparmorProfile = "localhost/" + name //nolint:staticcheck // deprecated, and still sent
	equal(t, "deprecated field", confinement(p.Start(old)), name+" (enforce)")

	c := privilegedPod(k, "apparmor-privileged").Start(withAppArmor(privileged(k, "privileged"), cri.SecurityProfile_Localhost, name))
	equal(t, "privileged", confinement(c), "unconfined")
	status, err := k.D.Runtime.Status(k.Ctx(), &cri.StatusRequest{})
	ready := false
	for _, c := range kubelet.Must(k, status, err).GetStatus().GetConditions() {
		ready = ready || c.Type == "AppArmorReady" && c.Status
	}
	equal(t, "condition AppArmorReady", ready, true)
}

func loadAppArmor(t *testing.T, name string) {
	t.Helper()
	parser := func(flag string) {
		t.Helper()
		cmd := exec.Command("apparmor_parser", flag)
		cmd.Stdin = strings.NewReader(fmt.Sprintf("profile %s flags=(attach_disconnected,mediate_deleted) {\n  file,\n  capability,\n  network,\n  signal,\n"+
			"  ptrace,\n  deny /tmp/denied w,\n}\n", name))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("apparmor_parser %s: %v\n%s", flag, err, out)
		}
	}
	parser("-Kr")
	t.Cleanup(func() { parser("-R") })
}
