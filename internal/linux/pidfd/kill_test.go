// SPDX-License-Identifier: Apache-2.0

package pidfd

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/berth-run/berth/internal/linux/proc"
)

func TestKillAllEndsThoseAndNoOthers(t *testing.T) {
	var ids []proc.ID
	var all []*exec.Cmd
	for range 3 {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		id, ok := proc.Identify(cmd.Process.Pid)
		if !ok {
			t.Fatal("the process is gone")
		}
		ids, all = append(ids, id), append(all, cmd)
	}
	later := proc.ID{PID: ids[2].PID, StartTime: ids[2].StartTime - 1} // had the pid before
	for range 2 {
		if err := KillAll(t.Context(), ids[0], later, ids[1]); err != nil {
			t.Fatal(err)
		}
	}
	if ids[0].Runs() || ids[1].Runs() || !ids[2].Runs() {
		t.Errorf("run: %v, %v, the one that nobody meant: %v", ids[0].Runs(), ids[1].Runs(), ids[2].Runs())
	}
	if err := all[0].Wait(); err == nil || !strings.Contains(err.Error(), syscall.SIGKILL.String()) {
		t.Errorf("it ended with %v", err)
	}
}
