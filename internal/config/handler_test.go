// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestShimNamesStandForPrograms(t *testing.T) {
	for name, want := range map[string]string{"io.containerd.kata.v2": "containerd-shim-kata-v2", "io.containerd.runsc.v1": "containerd-shim-runsc-v1",
		"io.containerd.wasmtime.v1": "containerd-shim-wasmtime-v1", "io.containerd.kata-qemu.v2": "containerd-shim-kata-qemu-v2"} {
		if got, err := ShimProgram(name); err != nil || got != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "kata", "io.containerd.kata", "io.containerd.../x.v2", "io.containerd.kata.v2/../x"} {
		if got, err := ShimProgram(name); err == nil {
			t.Errorf("%q was taken as %q", name, got)
		}
	}
}

func TestRlimitsAreRead(t *testing.T) {
	for text, want := range map[string]Rlimit{"nofile=1024:4096": {"RLIMIT_NOFILE", 1024, 4096}, "core=0": {"RLIMIT_CORE", 0, 0},
		"memlock=unlimited": {"RLIMIT_MEMLOCK", 1<<64 - 1, 1<<64 - 1}} {
		if got, err := ParseRlimit(text); err != nil || got != want {
			t.Errorf("%s: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "nofile", "nofile=", "files=1", "nofile=2:1", "nofile=-1", "nofile=1:2:3"} {
		if got, err := ParseRlimit(text); err == nil {
			t.Errorf("%q was taken as %v", text, got)
		}
	}
}

func TestAHandlersChoicesAreChecked(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"snapshotter":                  {"snapshotter = \"overlays\"", `runtimes.kata.snapshotter: "overlays" is not one of auto, erofs, overlayfs, did you mean "overlayfs"?`},
		"snapshotter of containerd's":  {"snapshotter = \"devmapper\"", `"devmapper" is not one of auto, erofs, overlayfs`},
		"cgroup driver":                {"cgroup_driver = \"sytemd\"", `runtimes.kata.cgroup_driver: "sytemd" is not one of auto, cgroupfs, systemd, did you mean "systemd"?`},
		"a key that is nearly one":     {"cgroup_diver = \"systemd\"", `did you mean "runtimes.kata.cgroup_driver"?`},
		"systemd below folders":        {"cgroup_driver = \"systemd\"\n[cgroup]\ndriver = \"cgroupfs\"", `runtimes.kata.cgroup_driver: "systemd" needs cgroup.driver = "systemd", too`},
		"privileged":                   {"privileged = \"no\"", "runtimes.kata.privileged"},
		"an rlimit":                    {"rlimits = [\"files=1\"]", `runtimes.kata.rlimits: "files=1" is not NAME=SOFT:HARD`},
		"an annotation that is no key": {"pod_annotations = [\"a b\"]", `runtimes.kata.pod_annotations: "a b" is not a pattern`},
		"a shim without a program":     {"type = \"shim\"", `runtimes.kata.shim: must be set, or path, for type "shim"`},
		"a type":                       {"type = \"sihm\"", `did you mean "shim"?`},
		"an OCI runtime with a shim":   {"shim = \"io.containerd.kata.v2\"", `runtimes.kata.type: must be "shim"`},
		"options of a shim":            {"type = \"shim\"\npath = \"/x\"\noptions = [\"-a\"]", `runtimes.kata.options: are for type "oci"`},
		"a sandbox container":          {"sandbox_container = \"allways\"", `did you mean "always"?`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, map[string]string{"config.toml": "version = 1\n[runtimes.kata]\n" + c.text + "\n"})
			if _, _, err := Load(Options{File: filepath.Join(dir, "config.toml")}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestWhoMakesAHandlersCgroups(t *testing.T) {
	for _, c := range []struct {
		handler, node string
		systemd, fail bool
	}{
		{"auto", "systemd", true, false}, {"auto", "cgroupfs", false, false}, {"systemd", "systemd", true, false}, {"systemd", "cgroupfs", false, true},
		{"cgroupfs", "systemd", false, false}, {"cgroupfs", "cgroupfs", false, false},
	} {
		got, err := (&Runtime{CgroupDriver: c.handler}).SystemdCgroup(c.node)
		if got != c.systemd || (err != nil) != c.fail {
			t.Errorf("%s on a node with %s: %t, %v", c.handler, c.node, got, err)
		}
	}
}
