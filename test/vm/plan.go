// SPDX-License-Identifier: Apache-2.0

package main

import "time"

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
	// Reboot restarts the machine instead of running a program.
	Reboot bool `json:",omitempty"`
}

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

// plan are the steps, in their order. What can only be tested on a machine like this one comes first.
func plan() []step {
	return []step{
		{Name: "machine", Package: "test/vm/machine", Env: []string{"BERTH_VM=1"}, Limit: 2 * time.Minute},
		{Name: "cgroup", Package: "internal/linux/cgroup", Limit: 3 * time.Minute},
	}
}
