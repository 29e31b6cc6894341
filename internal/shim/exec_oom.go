// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/berth-run/berth/internal/linux/proc"
)

// maxScoreRounds bounds how often the children of an exec are looked for.
const maxScoreRounds = 10

// setOOMScore gives the exec's processes the oom_score_adj of its spec: runc has given it the one that the container was started with. It does
// nothing unless that has been updated since; then the process runs for a moment with the old one, and so may its first children until they are found.
func (e *exec) setOOMScore(t *task, spec []byte) error {
	raw, err := jsonField(spec, "oomScoreAdj")
	if err != nil || raw == nil {
		return err
	}
	want, err := strconv.Atoi(string(raw))
	if err != nil {
		return fmt.Errorf("oomScoreAdj of the process: %w", err)
	}
	pid := e.process.pid()
	if now, err := proc.OOMScore(pid); errors.Is(err, fs.ErrNotExist) || now == want {
		return nil
	}
	tree := &processTree{group: t.group(), leader: pid, startTime: e.process.ticks()}
	done := map[int]bool{}
	for range maxScoreRounds {
		members, err := tree.members()
		if err != nil {
			return err
		}
		found := false
		for _, p := range members {
			if done[p.PID] {
				continue
			}
			done[p.PID], found = true, true
			same := func() bool {
				now, err := proc.ReadStat(p.PID)
				return err == nil && now.StartTime == p.StartTime
			}
			if err := proc.SetOOMScore(p.PID, want, same); err != nil {
				return err
			}
		}
		if !found {
			return nil
		}
	}
	return nil
}
