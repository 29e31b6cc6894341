// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"strings"
	"testing"
)

func TestParentPath(t *testing.T) {
	cases := []struct{ driver, parent, want string }{ // want "": refused
		{Cgroupfs, "/kubepods/burstable/pod1", "/kubepods/burstable/pod1"},
		{Cgroupfs, "berth", "/berth"},
		{Cgroupfs, "/kubelet.slice/kubepods", "/kubelet.slice/kubepods"},
		{Cgroupfs, "", ""},
		{Cgroupfs, "/", ""},
		{Cgroupfs, "/a/../b", ""},
		{Cgroupfs, "../b", ""},
		{Cgroupfs, "/a//b", ""},
		{Cgroupfs, "/a/", ""},
		{Cgroupfs, "./a", ""},
		{Cgroupfs, "/a:b", ""},
		{Cgroupfs, "/a\nb", ""},
		{Cgroupfs, "/a\x00b", ""},
		{Cgroupfs, "/" + strings.Repeat("a", 256), ""},
		{Cgroupfs, "kubepods-burstable.slice", ""},
		{Systemd, "kubepods.slice", "/kubepods.slice"},
		{Systemd, "kubepods-burstable-pod12_34.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice"},
		{Systemd, `a\x2db.slice`, `/a\x2db.slice`},
		{Systemd, "/kubepods.slice", "/kubepods.slice"},
		{Systemd, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"},
		{Systemd, "/kubepods.slice/kubepods-burstable-pod1.slice", ""},
		{Systemd, "kubepods.slice/kubepods-pod1.slice", ""},
		{Systemd, "/kubepods.slice/../kubepods.slice", ""},
		{Systemd, "/kubepods-pod1.slice", ""},
		{Systemd, "/kubepods.slice/", ""},
		{Systemd, "/", ""},
		{Systemd, "/kubepods/pod1", ""},
		{Systemd, "a/b.slice", ""},
		{Systemd, ".slice", ""},
		{Systemd, "-.slice", ""},
		{Systemd, "a--b.slice", ""},
		{Systemd, "-a.slice", ""},
		{Systemd, "a-.slice", ""},
		{Systemd, "a b.slice", ""},
		{Systemd, "a:b.slice", ""},
		{Systemd, "a.scope", ""},
		{Systemd, "", ""},
		{Systemd, strings.Repeat("a", 250) + ".slice", ""},
		{"openrc", "/a", ""},
	}
	for _, c := range cases {
		got, err := ParentPath(c.driver, c.parent)
		if got != c.want || (err == nil) != (c.want != "") || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("ParentPath(%s, %q) = %q, %v; want %q", c.driver, c.parent, got, err, c.want)
		}
		if verr := ValidateParent(c.driver, c.parent); (verr == nil) != (err == nil) {
			t.Errorf("ValidateParent(%s, %q) = %v, but ParentPath says %v", c.driver, c.parent, verr, err)
		}
	}
}

func TestDriverMismatchIsNamed(t *testing.T) {
	for driver, parent := range map[string]string{Cgroupfs: "kubepods-pod1.slice", Systemd: "/kubepods/pod1"} {
		if err := ValidateParent(driver, parent); err == nil || !strings.Contains(err.Error(), "does the kubelet use") {
			t.Errorf("%s, %s: %v", driver, parent, err)
		}
	}
}

func TestContainerPathResolvesToWhatTheRuntimeMakes(t *testing.T) {
	cases := []struct{ driver, parent, oci, resolved string }{
		{Cgroupfs, "/kubepods/pod1", "/kubepods/pod1/c1", "/kubepods/pod1/c1"},
		{Cgroupfs, "berth/pod1", "/berth/pod1/c1", "/berth/pod1/c1"},
		{Systemd, "a-b.slice", "a-b.slice:berth:c1", "/a.slice/a-b.slice/berth-c1.scope"},
	}
	for _, c := range cases {
		oci := ContainerPath(c.driver, c.parent, "berth", "c1")
		if oci != c.oci {
			t.Errorf("ContainerPath(%s, %s) = %s, want %s", c.driver, c.parent, oci, c.oci)
		}
		if resolved, err := ResolveOCI(oci); err != nil || resolved != c.resolved {
			t.Errorf("ResolveOCI(%s) = %s, %v; want %s", oci, resolved, err, c.resolved)
		}
	}
	for _, bad := range []string{"", "/", "relative/c1", "/a/../..", "a.slice:b", "a:b:c", "a.slice:b:", "a.slice:b:c/d", ":::"} {
		if got, err := ResolveOCI(bad); err == nil {
			t.Errorf("ResolveOCI(%q) = %q, want an error", bad, got)
		}
	}
}

func TestValidateDriver(t *testing.T) {
	for driver, ok := range map[string]bool{Cgroupfs: true, Systemd: true, "": false, "Systemd": false} {
		if err := ValidateDriver(driver); (err == nil) != ok {
			t.Errorf("ValidateDriver(%q) = %v", driver, err)
		}
	}
}
