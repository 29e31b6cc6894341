// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const noLimit = math.MaxUint64

// limits are what containers get of each of the kernel's limits, soft and hard. All of them, so that none depends on the unit that the daemon
// runs in: they are what containers have had for years where a daemon's unit follows its upstream, and systemd's defaults for the rest.
var limits = []specs.POSIXRlimit{
	{Type: "RLIMIT_AS", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_CORE", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_CPU", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_DATA", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_FSIZE", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_LOCKS", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_MEMLOCK", Soft: 8 << 20, Hard: 8 << 20},
	{Type: "RLIMIT_MSGQUEUE", Soft: 819200, Hard: 819200},
	{Type: "RLIMIT_NICE", Soft: 0, Hard: 0},
	// A soft limit of 1024 breaks databases that do not raise their own; an unlimited one (2^30) makes programs crawl that close every
	// descriptor there could be.
	{Type: "RLIMIT_NOFILE", Soft: 1048576, Hard: 1048576},
	// Processes are counted per user of the whole node: the pod's pids limit is what bounds them.
	{Type: "RLIMIT_NPROC", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_RSS", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_RTPRIO", Soft: 0, Hard: 0},
	{Type: "RLIMIT_RTTIME", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_SIGPENDING", Soft: noLimit, Hard: noLimit},
	{Type: "RLIMIT_STACK", Soft: 8 << 20, Hard: noLimit},
}

// rlimits are the limits as far as this node can give them.
func rlimits(host Host) []specs.POSIXRlimit {
	all := make([]specs.POSIXRlimit, len(limits))
	for i, l := range limits {
		if ceiling, ok := host.Limits[l.Type]; ok {
			l.Hard = min(l.Hard, ceiling)
			l.Soft = min(l.Soft, l.Hard)
		}
		all[i] = l
	}
	return all
}

// withRlimits sets those of the runtime handler over the daemon's.
func withRlimits(base []specs.POSIXRlimit, own []Rlimit) []specs.POSIXRlimit {
	all := slices.Clone(base)
	for _, l := range own {
		next := specs.POSIXRlimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard}
		if i := slices.IndexFunc(all, func(o specs.POSIXRlimit) bool { return o.Type == l.Type }); i >= 0 {
			all[i] = next
		} else {
			all = append(all, next)
		}
	}
	return all
}
