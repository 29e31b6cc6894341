// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	"os"
	osexec "os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
)

const forkerEnvironment = "BERTH_TEST_FORKER"

// init makes this program one that starts sessions all the time, several at once: its threads wait in vfork, each for a child that makes its session and
// then executes its program.
func init() {
	seconds := os.Getenv(forkerEnvironment)
	if seconds == "" {
		return
	}
	for range 4 {
		go func() {
			for {
				cmd := osexec.Command("sleep", seconds)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
				if cmd.Start() != nil {
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
	select {}
}

// TestATreeIsKilledWholeWhileItsThreadsFork has no container: a session of a parent that is gone is nobody's then, so each that is missed is seen.
func TestATreeIsKilledWholeWhileItsThreadsFork(t *testing.T) {
	for i := range 5 {
		seconds := fmt.Sprintf("1011.%d%d", os.Getpid(), i)
		cmd := osexec.Command("/proc/self/exe", seconds)
		cmd.Env = append(os.Environ(), forkerEnvironment+"="+seconds)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		stat, err := proc.ReadStat(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		reaped := make(chan error, 1)
		go func() { reaped <- cmd.Wait() }()
		if err := (&processTree{leader: stat.PID, startTime: stat.StartTime}).kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
		if err := <-reaped; err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the leader: %v", err)
		}
		left, err := proc.Find(func(args []string) bool { return args[len(args)-1] == seconds })
		if err != nil {
			t.Fatal(err)
		}
		if len(left) != 0 {
			t.Errorf("%d processes are left", len(left))
		}
		for _, p := range left {
			syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
}
