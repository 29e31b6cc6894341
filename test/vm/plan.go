// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// step is one thing that the guest does: a program, or a reboot.
type step struct {
	// Name is printed, and chosen by -run.
	Name string
	// Package is the tests' package, relative to the repository. Its test binary is made on the host and runs in the package's folder.
	Package string `json:",omitempty"`
	// Run chooses tests, Skip leaves some out, as in go test.
	Run  string `json:",omitempty"`
	Skip string `json:",omitempty"`
	// Env is added to the environment of the program.
	Env []string `json:",omitempty"`
	// Limit ends the step; what has not ended by then counts as one failure.
	Limit time.Duration
	// Reboot restarts the machine instead of running a program: "orderly", or as after a power cut, with what is on disk by then.
	Reboot string `json:",omitempty"`
}

const (
	orderly  = "orderly"
	powerCut = "power cut"
)

// binary is the step's test binary on the payload disk.
func (s step) binary() string {
	name := []byte(s.Package)
	for i, b := range name {
		if b == '/' {
			name[i] = '-'
		}
	}
	return "tests/" + string(name) + ".test"
}

const systemdDriver = "BERTH_TEST_CGROUP_DRIVER=systemd"

// vmEnv tells tests where they are, and how much longer things take in an emulated processor.
func vmEnv(more ...string) []string {
	return append([]string{"BERTH_VM=1", "BERTH_TEST_SLOW=10"}, more...)
}

// plan are the steps, in their order. What can only be tested on a machine like this one comes first; the rest of the integration tests
// takes most of the time.
func (o options) plan() []step {
	steps := []step{
		{Name: "machine", Package: "test/vm/machine", Env: vmEnv(), Limit: 2 * time.Minute},
		{Name: "cgroup", Package: "internal/linux/cgroup", Env: vmEnv(), Limit: 3 * time.Minute},
		{Name: "fs-verity", Package: "internal/linux/verity", Env: vmEnv(), Limit: 3 * time.Minute},
		{Name: "mounts", Package: "internal/linux/mount", Env: vmEnv(), Limit: 3 * time.Minute},
		{Name: "layers", Package: "internal/image", Run: ofKernel, Env: vmEnv(), Limit: 6 * time.Minute},
		{Name: "slice", Package: "internal/linux/cgroup/slice", Env: vmEnv(), Limit: 3 * time.Minute},
		{Name: "service", Package: "test/vm/service", Run: "TestBeforeTheReboot", Env: vmEnv(systemdDriver), Limit: 5 * time.Minute},
		{Name: "service-reboot", Reboot: orderly},
		{Name: "service-rebooted", Package: "test/vm/service", Run: "TestAfterTheReboot", Env: vmEnv(systemdDriver), Limit: 5 * time.Minute},
		{Name: "service-power-cut", Reboot: powerCut},
		{Name: "service-restored", Package: "test/vm/service", Run: "TestAfterThePowerCut", Env: vmEnv(systemdDriver), Limit: 5 * time.Minute},
		{Name: "systemd", Package: "test/integration", Run: ofMachine, Env: vmEnv(systemdDriver), Limit: 15 * time.Minute},
		{Name: "handlers", Package: "test/integration", Run: "^TestAHandlersCgroupDriver$", Env: vmEnv(systemdDriver), Limit: 3 * time.Minute},
		{Name: "checkpoint", Package: "test/integration", Run: "^TestACheckpoint|^TestAPodIsRestored", Env: vmEnv(systemdDriver), Limit: 5 * time.Minute},
		{Name: "cgroupfs", Package: "test/integration", Run: ofDrivers, Env: vmEnv(), Limit: 10 * time.Minute},
	}
	if _, err := os.Stat("bin/containerd/containerd"); err == nil { // on request: `make bin/containerd/containerd-shim-runc-v2`
		steps = append(steps, step{Name: "containerd", Package: "test/handlers/containerd", Run: ofShim, Env: vmEnv(), Limit: 6 * time.Minute},
			step{Name: "containerd-systemd", Package: "test/handlers/containerd", Run: ofShim, Env: vmEnv(systemdDriver), Limit: 6 * time.Minute})
	}
	if o.suite != "" {
		env := vmEnv(systemdDriver, "CRITEST="+filepath.Join(mountPoint, suiteFile), "CRITEST_FLAGS="+os.Getenv("CRITEST_FLAGS"), "FIXTURES="+insideGuest(o.fixtures))
		steps = append(steps, step{Name: "critest", Package: "test/conformance", Env: env, Limit: 25 * time.Minute})
	}
	return steps
}

const (
	// ofKernel are tests of layers: fs-verity, and EROFS files on a kernel before 6.15.
	ofKernel = "^Test(TheKernelGuards|ABlockThatRots|AGuardedBlob|WhatIsMendedIsGuarded|RootFileSystemsOfBoth|LayersOfBoth|AnErofsLayerIs|ADamagedBlobIs|OneImageIsPulled|AHandlersSnapshotter)"
	// ofMachine are tests of what this machine has and others may lack: limits and statistics of cgroup v2, confinement by AppArmor, capabilities,
	// user namespaces of a kernel before 6.15; and one or two of each other thing that a pod is made of. All of them would take hours.
	ofMachine = "^Test(AppArmor|ALocalSeccomp|SecurityContextIs|Capabilities|Privileged|Limits|ResourcesAre|UnifiedResources|AnUpdateIs|APodsResources|HowAContainerEnded|" +
		"StatisticsAreWhat|MetricsAreWhat|BlockIOClasses|RuntimeConfigNames|APodHasItsOwnUser|AUserNamespaceWith|ProcMount|VolumesOfAUser|SingleMounts|AManifestMay|" +
		"ExploitSysctls|ExploitContainersAreApart|ASandboxLives|NamespacesAre|ASharedPIDNamespace|MountsAreBound|ReadOnlyMounts|ImagesAreMounted|" +
		"ExecStreams|ExecSyncTimeout|PodsGoOn|ARebootEnds|ThePodOfAKilledShim)"
	// ofShim are tests of our shim in containerd that look at cgroups.
	ofShim = "^Test(StatsAndUpdate|OutOfMemoryIsTold|PauseAndResume|KillAndWhat)"
	// ofDrivers are tests of what the cgroup driver does: limits, exits, recovery.
	ofDrivers = "^Test(ResourcesAre|UnifiedResources|AnUpdateIs|APodsResources|HowAContainerEnded|StatisticsAreWhat|BlockIOClasses|RuntimeConfigNames|" +
		"APodHasItsOwnUser|ExploitContainersAreApart|ASandboxLives|ASharedPIDNamespace|ExecSyncTimeout|PodsGoOn|ARebootEnds)"
)

// insideGuest is an address of this host as the guest has it.
func insideGuest(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err == nil && (host == "" || host == "localhost" || strings.HasPrefix(host, "127.")) {
		return net.JoinHostPort("10.0.2.2", port)
	}
	return address
}
