// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const description = `{"cdiVersion": "0.6.0", "kind": "vendor.example/gpu",
 "containerEdits": {"env": ["DRIVER=1"]},
 "devices": [{"name": "a", "containerEdits": {"env": ["GPU=a"],
   "deviceNodes": [{"path": "/dev/gpu-a", "hostPath": "/dev/null", "permissions": "rw"}],
   "mounts": [{"hostPath": "/etc/hosts", "containerPath": "/gpu/hosts", "options": ["ro", "bind"]}],
   "hooks": [{"hookName": "createContainer", "path": "/bin/true"}]}}]}`

func folder(t *testing.T, files map[string]string) *Devices {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return New([]string{filepath.Join(dir, "none"), dir})
}

func ordinary() *specs.Spec {
	return &specs.Spec{Version: "1.2.0", Process: &specs.Process{User: specs.User{UID: 7, GID: 8}, Env: []string{"GPU=none"}},
		Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
}

func TestADeviceBringsAllThatItsDescriptionSays(t *testing.T) {
	s := ordinary()
	if err := folder(t, map[string]string{"gpu.json": description, "bad.json": "{"}).Inject(s, []string{"vendor.example/gpu=a"}); err != nil {
		t.Fatal(err)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/gpu-a" || s.Linux.Devices[0].Minor != 3 || *s.Linux.Devices[0].UID != 7 || *s.Linux.Devices[0].GID != 8 {
		t.Errorf("devices %+v", s.Linux.Devices)
	}
	if rules := s.Linux.Resources.Devices; len(rules) != 1 || !rules[0].Allow || rules[0].Access != "rw" || *rules[0].Major != 1 || *rules[0].Minor != 3 {
		t.Errorf("rules %+v", rules)
	}
	if len(s.Mounts) != 1 || s.Mounts[0].Destination != "/gpu/hosts" || len(s.Hooks.CreateContainer) != 1 {
		t.Errorf("mounts %+v, hooks %+v", s.Mounts, s.Hooks)
	}
	if slices.Contains(s.Process.Env, "GPU=none") || !slices.Contains(s.Process.Env, "GPU=a") || !slices.Contains(s.Process.Env, "DRIVER=1") {
		t.Errorf("environment %q", s.Process.Env)
	}
	if s.Version != "1.2.0" {
		t.Errorf("version %s", s.Version)
	}
}

func TestUnknownDevicesNameWhatIsWrong(t *testing.T) {
	d := folder(t, map[string]string{"gpu.json": description, "bad.json": `{"cdiVersion"`})
	err := d.Inject(ordinary(), []string{"vendor.example/gpu=a", "vendor.example/gpu=z"})
	if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "gpu=z") || strings.Contains(err.Error(), "gpu=a") || !strings.Contains(err.Error(), "bad.json") {
		t.Error(err)
	}
	for _, bad := range []string{"", "gpu", "vendor/gpu", "vendor/gpu=", "vendor/../gpu=a", "/dev/null", "vendor.example/gpu=a b"} {
		if err := d.Inject(ordinary(), []string{bad}); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := Validate(make([]string, maxDevices+1)); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	if err := New(nil).Inject(nil, nil); err != nil {
		t.Errorf("nothing asked: %v", err)
	}
}

func TestDescriptionsOfTheMomentCount(t *testing.T) {
	dir := t.TempDir()
	d := New([]string{dir})
	if err := d.Inject(ordinary(), []string{"vendor.example/gpu=a"}); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "gpu.json"), []byte(description), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Inject(ordinary(), []string{"vendor.example/gpu=a"}); err != nil {
		t.Error(err)
	}
}

func TestAnnotationsNameDevices(t *testing.T) {
	names, err := FromAnnotations(map[string]string{"cdi.k8s.io/plugin_1": "v/c=b,v/c=a", "cdi.k8s.io/plugin_2": "v/c=a", "other": "v/c=z"})
	if err != nil || !slices.Equal(names, []string{"v/c=a", "v/c=b"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := FromAnnotations(map[string]string{"cdi.k8s.io/plugin": "/dev/mem"}); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	if Asked(map[string]string{"x": "y"}) || !Asked(map[string]string{"cdi.k8s.io/x": ""}) {
		t.Error("Asked")
	}
}

func FuzzValidate(f *testing.F) {
	f.Add("vendor.example/gpu=a")
	f.Fuzz(func(t *testing.T, name string) {
		if Validate([]string{name}) == nil && (strings.ContainsAny(name, "\x00\n ") || strings.Count(name, "/") != 1) {
			t.Errorf("%q is taken", name)
		}
	})
}
