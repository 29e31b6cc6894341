// SPDX-License-Identifier: Apache-2.0

// Package leak finds what a container runtime leaves behind on a machine: processes, mounts, network
// namespaces, links, packet filter rules, cgroups, addresses, files and open descriptors. It looks only
// at what one test's runtime can have made, so tests can run side by side. Tests and the benchmarks use it.
package leak

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Scope is what belongs to one runtime under test. Each field that is empty is not looked at.
type Scope struct {
	// Dir is the folder that holds everything: processes that name it or live in it, mounts below it.
	Dir string
	// Tidy are folders whose entries must be gone when no pod is left, each with its depth.
	Tidy map[string]int
	// Network is the name of the CNI network and a part of each rule that its plugins make.
	Network string
	// Bridge is the network's bridge.
	Bridge string
	// IPAM is the folder where host-local keeps its addresses.
	IPAM string
	// Cgroup is the name of a cgroup below which the pods live.
	Cgroup string
	// Daemon is the process ID of the runtime's daemon, 0 when it does not run.
	Daemon int
	// Descriptors are counted only if set: a foreign daemon may open what it likes.
	Descriptors bool
}

// Snapshot is a set of things, each as a text that says what it is.
type Snapshot map[string]struct{}

func (s Snapshot) add(kind, what string) { s[kind+" "+what] = struct{}{} }

// Take looks at the machine.
func (s Scope) Take() (Snapshot, error) {
	found := Snapshot{}
	var errs []error
	for _, look := range []func(Snapshot) error{
		s.processes, s.mounts, s.links, s.rules, s.cgroups, s.addresses, s.files, s.descriptors,
	} {
		errs = append(errs, look(found))
	}
	return found, errors.Join(errs...)
}

// Since lists, sorted, what is in the snapshot and was not in the earlier one.
func (s Snapshot) Since(before Snapshot) []string {
	var more []string
	for what := range s {
		if _, ok := before[what]; !ok {
			more = append(more, what)
		}
	}
	slices.Sort(more)
	return more
}

// settle is how long things may take to vanish after the last call returned: PID 1 reaps orphans every two
// seconds on some machines, and the kernel takes a namespace's links down from a work queue.
const settle = 20 * time.Second

// Check fails the test with a list of what is there now and was not in the earlier snapshot.
func (s Scope) Check(tb testing.TB, before Snapshot) {
	tb.Helper()
	left, err := s.Leftovers(before)
	if err != nil {
		tb.Errorf("look for leaks: %v", err)
	}
	if len(left) > 0 {
		tb.Errorf("leaked:\n\t%s", strings.Join(left, "\n\t"))
	}
}

// Leftovers waits until nothing is there that was not in the earlier snapshot, or the time to settle
// is over. What is reported was there in every look.
func (s Scope) Leftovers(before Snapshot) ([]string, error) {
	var always Snapshot
	for end := time.Now().Add(settle); ; time.Sleep(100 * time.Millisecond) {
		now, err := s.Take()
		if err != nil {
			return nil, err
		}
		if always == nil {
			always = now
		} else {
			maps.DeleteFunc(always, func(what string, _ struct{}) bool { _, ok := now[what]; return !ok })
		}
		left := now.Since(before)
		if len(left) == 0 {
			return nil, nil
		}
		if time.Now().After(end) {
			return always.Since(before), nil
		}
	}
}
