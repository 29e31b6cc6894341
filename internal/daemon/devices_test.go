// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/spec"
)

func makeDevices(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if err := syscall.Mknod(filepath.Join(dir, name), syscall.S_IFCHR|0o640, 1<<8|3); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestADeviceFolderStandsForItsDevices(t *testing.T) {
	dir := makeDevices(t, "card0", "render128")
	all, err := requestedDevices([]*runtimeapi.Device{
		{HostPath: dir, ContainerPath: "/dev/dri/", Permissions: "rw"},
		{HostPath: "/dev/zero", ContainerPath: "/dev/dri/card0", Permissions: "r"},
		{HostPath: dir + "/render128", ContainerPath: "/dev/one", Permissions: "m"},
	})
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	for i, want := range []spec.Device{{Path: "/dev/dri/card0", Minor: 5, Access: "r"}, {Path: "/dev/dri/render128", Minor: 3, Access: "rw"},
		{Path: "/dev/one", Minor: 3, Access: "m"}} {
		if got := all[i]; got.Path != want.Path || got.Minor != want.Minor || got.Access != want.Access || got.Major != 1 || got.Type != "c" {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	for _, bad := range []string{"/dev/none", "/etc/passwd", t.TempDir()} {
		if _, err := requestedDevices([]*runtimeapi.Device{{HostPath: bad, ContainerPath: "/dev/x", Permissions: "r"}}); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestPrivilegedContainersSeeTheDevicesOfTheMoment(t *testing.T) {
	request := pod.SpecRequest{Handler: "runc", Container: &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{
		SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Privileged: true}}}}
	has := func(m specMaker, path string) bool {
		t.Helper()
		var in spec.Input
		if err := m.addDevices(&in, request); err != nil {
			t.Fatal(err)
		}
		for _, d := range in.HostDevices {
			if d.Path == path {
				return true
			}
		}
		return false
	}
	path := "/dev/berth-test-" + filepath.Base(t.TempDir())
	m := specMaker{}
	if has(m, path) {
		t.Fatal("is there before it is made")
	}
	if err := syscall.Mknod(path, syscall.S_IFCHR|0o600, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unlink(path) })
	if !has(m, path) {
		t.Error("a device that came later is not given")
	}
	if has(specMaker{handlers: map[string]handlerPolicy{"runc": {withoutHostDevices: true}}}, path) {
		t.Error("given though the handler's privileged containers get no host devices")
	}
}

func TestDevicesBelongToTheContainersUserWhereConfigured(t *testing.T) {
	dir := makeDevices(t, "d")
	sc := &runtimeapi.LinuxContainerSecurityContext{RunAsUser: &runtimeapi.Int64Value{Value: 7}, RunAsGroup: &runtimeapi.Int64Value{Value: 8}}
	request := pod.SpecRequest{Container: &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: sc},
		Devices: []*runtimeapi.Device{{HostPath: dir + "/d", ContainerPath: "/dev/d", Permissions: "rw"}}}}
	for _, ownership := range []bool{false, true} {
		var in spec.Input
		if err := (specMaker{deviceOwnership: ownership}).addDevices(&in, request); err != nil || len(in.Devices) != 1 {
			t.Fatal(in.Devices, err)
		}
		if d := in.Devices[0]; (d.UID == 7 && d.GID == 8) != ownership || d.Mode != 0o640 {
			t.Errorf("ownership %v: %+v", ownership, d)
		}
	}
}
