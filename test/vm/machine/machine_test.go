// SPDX-License-Identifier: Apache-2.0

// Package machine holds what the virtual machine must give to the tests that are run in it: a test that skips itself for want of cgroup
// v2 or AppArmor would look like one that passed. `make test-vm` runs it; elsewhere it is left out.
package machine

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

func TestMain(m *testing.M) {
	if os.Getenv("BERTH_VM") == "" {
		return
	}
	os.Exit(m.Run())
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestCgroupsAreVersion2WithAllControllers(t *testing.T) {
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if h.Mode() != cgroup.Unified {
		t.Errorf("cgroups are %s", h.Mode())
	}
	controllers, err := h.Controllers()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"} {
		if !slices.Contains(controllers, want) {
			t.Errorf("controller %s is missing from %v", want, controllers)
		}
	}
}

func TestSystemdRunsTheMachine(t *testing.T) {
	if comm := read(t, "/proc/1/comm"); comm != "systemd" {
		t.Errorf("PID 1 is %s", comm)
	}
	if _, err := os.Stat("/run/systemd/private"); err != nil {
		t.Error(err)
	}
}

func TestAppArmorIsOn(t *testing.T) {
	if on := read(t, "/sys/module/apparmor/parameters/enabled"); on != "Y" {
		t.Errorf("AppArmor enabled: %s", on)
	}
	if lsm := read(t, "/sys/kernel/security/lsm"); !slices.Contains(strings.Split(lsm, ","), "apparmor") {
		t.Errorf("security modules are %s", lsm)
	}
}

func TestNoCapabilityIsMissing(t *testing.T) {
	last := read(t, "/proc/sys/kernel/cap_last_cap")
	status := read(t, "/proc/self/status")
	_, after, _ := strings.Cut(status, "CapBnd:")
	bounding, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
	if want := "000001ffffffffff"; last == "40" && bounding != want {
		t.Errorf("bounding set is %s, want %s", bounding, want)
	}
}

func TestTheKernelTellsPressure(t *testing.T) {
	if !strings.Contains(read(t, "/proc/pressure/cpu"), "some avg10=") {
		t.Error("no PSI")
	}
}

func TestTemporaryFilesAreOnADisk(t *testing.T) {
	for line := range strings.Lines(read(t, "/proc/self/mounts")) {
		if f := strings.Fields(line); f[1] == "/tmp" || f[1] == "/" && f[2] != "ext4" {
			t.Errorf("%s is a %s", f[1], f[2])
		}
	}
}
