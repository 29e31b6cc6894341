// SPDX-License-Identifier: Apache-2.0

// Package handlers tests pods of every kind of runtime handler on the real kernel: runc, crun where it runs, gVisor as an OCI
// binary and through its own shim, containerd's shim for runc. After each test nothing may be left on the machine. `make test-handlers` builds what it needs;
// a handler whose programs are not there is left out and named.
package handlers

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

var (
	images     *registry.Server
	busyboxRef string
	binDir     string
	// workDir has the shims' configuration files and what they keep.
	workDir string
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == fakeName {
		os.Exit(fakeMain(os.Args))
	}
	flag.Parse()
	if testing.Short() {
		fmt.Println("handler tests are left out with -short")
		return
	}
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "handler tests:", err)
		os.Exit(1)
	}
	complaints := kubelet.KeepComplaints()
	code := m.Run()
	if code != 0 {
		complaints(os.Stderr)
	}
	images.Close()
	// runsc keeps an empty network namespace for all its sandboxes.
	for _, root := range []string{"runsc/berth", "runsc-oci"} {
		err := syscall.Unmount(filepath.Join(workDir, root, "null-netns"), syscall.MNT_DETACH)
		if err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EINVAL) {
			fmt.Fprintln(os.Stderr, "handler tests:", err)
		}
	}
	if err := os.RemoveAll(workDir); err != nil {
		fmt.Fprintln(os.Stderr, "handler tests:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func setUp() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("need root (or -short)")
	}
	var err error
	if binDir, err = daemon.BinDir(); err != nil {
		return err
	}
	if workDir, err = os.MkdirTemp("", "bt-handlers-"); err != nil {
		return err
	}
	toml := fmt.Sprintf("binary_name = %q\nroot = %q\n[runsc_config]\nplatform = \"systrap\"\n", filepath.Join(binDir, "gvisor/runsc"), filepath.Join(workDir, "runsc"))
	if err := os.WriteFile(filepath.Join(workDir, "runsc.toml"), []byte(toml), 0o600); err != nil {
		return err
	}
	images, busyboxRef, err = registry.NewWithBusybox()
	return err
}

// handler is one row of the table.
type handler struct {
	name string
	// config is the [runtimes.NAME] table; programs are what it names.
	config   string
	programs []string
	// foreign: another project's shim runs it.
	foreign string
	// gvisor: its containers see gVisor's kernel.
	gvisor bool
	// no are abilities that the runtime itself has not.
	no []string
}

func table() []handler {
	at := func(name string) string { return filepath.Join(binDir, name) }
	runcShim := at("containerd/containerd-shim-runc-v2")
	crun := crunHere()
	runsc, runscShim := at("gvisor/runsc"), at("gvisor/containerd-shim-runsc-v1")
	return []handler{
		{name: "runc"},
		{name: "crun", programs: []string{crun}, config: fmt.Sprintf("type = \"oci\"\npath = %q\n", crun)},
		{name: "runc-shim", programs: []string{runcShim}, foreign: "containerd-shim-runc-v2",
			config: fmt.Sprintf("type = \"shim\"\npath = %q\nshim_binary = %q\n", runcShim, at("runc"))},
		{name: "runsc", programs: []string{runsc}, gvisor: true, foreign: "runsc-sandbox",
			config: fmt.Sprintf("type = \"oci\"\npath = %q\noptions = [\"--platform=systrap\"]\nroot = %q\n", runsc, filepath.Join(workDir, "runsc-oci"))},
		{name: "runsc-shim", programs: []string{runsc, runscShim}, foreign: "containerd-shim-runsc-v1", gvisor: true, no: []string{"localhost"},
			config: fmt.Sprintf("type = \"shim\"\npath = %q\nshim_config = %q\n", runscShim, filepath.Join(workDir, "runsc.toml"))},
	}
}

// each runs a test for every handler that is there.
func each(t *testing.T, test func(t *testing.T, h handler)) {
	for _, h := range table() {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			for _, p := range h.programs {
				if _, err := os.Stat(p); err != nil {
					t.Skipf("not here: %v", err)
				}
			}
			if h.name == "crun" && !crunRuns(h.programs[0]) {
				t.Skip("this machine's crun does not run here: see docs/runtime-classes.md")
			}
			test(t, h)
		})
	}
}

// crunRuns tells whether crun knows the OCI runtime-spec's version that Berth writes; Debian 12's does not.
func crunRuns(path string) bool {
	return exec.Command(path, "features").Run() == nil
}

// crunHere is BERTH_TEST_CRUN, or the one that make has fetched, or crun in PATH; empty: none. On the hybrid cgroup layout, which crun refuses, it sees the machine without the hierarchy of
// version 2, by a script in its place.
func crunHere() string {
	path := os.Getenv("BERTH_TEST_CRUN")
	if path == "" {
		path = filepath.Join(binDir, "crun/crun")
	}
	if _, err := os.Stat(path); err != nil {
		path, _ = exec.LookPath("crun") // none
	}
	const unified = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(unified); path == "" || err != nil {
		return path
	}
	script := filepath.Join(workDir, "crun")
	text := fmt.Sprintf("#!/bin/sh\nexec unshare --mount --propagation private sh -c 'umount %s && exec \"$0\" \"$@\"' %s \"$@\"\n", unified, path)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		return path
	}
	return script
}

// node is a daemon with the handler, and an image.
func node(t *testing.T, h handler) *kubelet.Kubelet {
	t.Helper()
	config := ""
	if h.config != "" {
		config = "\n[runtimes." + h.name + "]\n" + h.config
	}
	d := daemon.Start(t, daemon.Spec{Config: config})
	k := &kubelet.Kubelet{T: t, D: d, Handler: h.name}
	if err := d.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	k.Image = k.Pull(busyboxRef)
	return k
}
