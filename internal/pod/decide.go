// SPDX-License-Identifier: Apache-2.0

package pod

import "github.com/berth-run/berth/internal/shimapi/shimpb"

// What recovery does with a sandbox, and with a container.
type verdict int

const (
	// keep: it is as the record says.
	keep verdict = iota
	// rollBack: its creation was cut off; release what was begun and forget it.
	rollBack
	// finishRemoval: its removal was cut off; end it.
	finishRemoval
	// finishStop: its stop was cut off; end it.
	finishStop
	// lose: it was alive, and is not any more.
	lose
	// adopt: it lives; watch it again.
	adopt
	// adoptStarted: it was being started and runs: its start becomes a fact, then adopt.
	adoptStarted
	// unstart: it was being started and never ran: release the attempt, it is CREATED again.
	unstart
	// settleExit: it has exited, or its exit is noted but not cleaned up.
	settleExit
)

// observed is what the host shows of a sandbox.
type observed struct {
	// SameBoot: the record was written since the kernel started.
	SameBoot bool
	// ShimAlive: its shim has answered.
	ShimAlive bool
}

// decideSandbox is pure: what to do with a sandbox after a restart.
func decideSandbox(r sandboxRecord, o observed) verdict {
	switch {
	case r.RemovedAt != 0:
		return finishRemoval
	case r.ReadyAt == 0 && r.StoppedAt == 0:
		return rollBack
	case r.StoppedAt != 0 && len(r.Begun) > 1: // more than the state folder
		return finishStop
	case r.StoppedAt != 0:
		return keep
	case !o.SameBoot || !o.ShimAlive:
		return lose
	}
	return adopt
}

// task is what the shim knows of a container; the zero value: nothing.
type task struct {
	Known  bool
	Status shimpb.Status
}

// decideContainer is pure: what to do with a container after a restart. alive tells whether its sandbox's
// shim has answered, exitFacts whether the shim left exit facts on disk, begun whether the task step was begun.
func decideContainer(r containerRecord, alive, exitFacts, begun bool, t task) verdict {
	switch {
	case r.RemovedAt != 0:
		return finishRemoval
	case r.CreatedAt == 0 && r.FinishedAt == 0:
		return rollBack
	case r.FinishedAt != 0:
		return settleExit
	case !begun:
		return keep // CREATED
	case !alive:
		if r.StartedAt == 0 && !exitFacts {
			return unstart
		}
		return lose
	case t.Known && t.Status == shimpb.Status_STOPPED:
		return settleExit
	case t.Known && t.Status == shimpb.Status_RUNNING:
		if r.StartedAt == 0 {
			return adoptStarted
		}
		return adopt
	case r.StartedAt == 0:
		return unstart
	}
	return lose // the record says it runs and the shim does not know it
}
