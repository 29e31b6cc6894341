// SPDX-License-Identifier: Apache-2.0

package config

import "testing"

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
