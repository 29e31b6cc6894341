// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	osexec "os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
)

// startPause starts `berth-shim pause` as PID 1 of a new PID namespace.
func startPause(t *testing.T) *osexec.Cmd {
	t.Helper()
	pause := osexec.Command(shimBinary(t), "pause")
	pause.Env = shimapi.Environment()
	pause.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true}
	if err := pause.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pause.ProcessState == nil {
			pause.Process.Kill()
			pause.Wait()
		}
	})
	return pause
}

func TestPauseReapsAndEndsOnSIGTERM(t *testing.T) {
	s := startShim(t)
	pause := startPause(t)
	namespace := fmt.Sprintf("/proc/%d/ns/pid", pause.Process.Pid)
	first := s.run(testContainer{script: "(sleep 0.2 &) ; (sleep 1000 &) ; echo ready; sleep 0.6; exit 5", pidNamespace: namespace})
	second := s.run(testContainer{script: "sleep 1000", pidNamespace: namespace})
	s.awaitOutput(first, "ready")
	if children, err := proc.Children(pause.Process.Pid); err != nil || len(children) != 2 {
		t.Fatalf("orphans at PID 1: %v, %v", children, err)
	}
	s.eventually("the ended orphan to be reaped", func() bool {
		children, err := proc.Children(pause.Process.Pid)
		return err == nil && len(children) == 1
	})
	if code := s.wait(first, ""); code != 5 {
		t.Errorf("code %d", code)
	}
	s.eventually("the other orphan to be killed with its container", func() bool {
		children, err := proc.Children(pause.Process.Pid)
		return err == nil && len(children) == 0
	})
	if !proc.Is(s.initFact(second).PID, s.initFact(second).StartTime) {
		t.Error("a container died with its neighbour")
	}
	s.kill(second, syscall.SIGKILL)
	s.wait(second, "")
	begin := time.Now()
	if err := pause.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := pause.Wait(); err != nil {
		t.Errorf("end of pause: %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
}
