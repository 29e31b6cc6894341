// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"os/exec"
	"strings"
)

// checkCheckpoints has CRIU try itself on this kernel: one that is older than the kernel often does not work on it.
func (d *Doctor) checkCheckpoints(ctx context.Context, r report) {
	program := d.program("criu")
	if program == "" {
		r.ok("no CRIU: containers cannot be checkpointed (the package criu, where that is wanted)")
		return
	}
	said, err := exec.CommandContext(ctx, program, "check").CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(said)), "\n")
		r.warn("install a CRIU that goes with this kernel, or do without checkpoints; `criu check` tells more", "CRIU does not work here: %v: %.200s", err, lines[len(lines)-1])
		return
	}
	r.ok("CRIU works: containers can be checkpointed")
}
