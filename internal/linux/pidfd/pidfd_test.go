// SPDX-License-Identifier: Apache-2.0

package pidfd

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
)

func start(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func TestSignalReachesProcessAndThenReportsGone(t *testing.T) {
	cmd := start(t)
	f, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if sig := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); sig != syscall.SIGTERM {
		t.Fatalf("ended by %v", sig)
	}
	if err := f.Signal(syscall.SIGTERM); !errors.Is(err, ErrGone) {
		t.Fatalf("signal after exit: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	if err := f.Signal(0); !errors.Is(err, ErrGone) {
		t.Fatalf("signal after close: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Fatalf("open after reaping: %v", err)
	}
}

func TestKillIfSparesStrangers(t *testing.T) {
	cmd := start(t)
	sent, err := KillIf(cmd.Process.Pid, syscall.SIGKILL, func() bool { return false })
	if err != nil || sent {
		t.Fatalf("sent %v, %v", sent, err)
	}
	sent, err = KillIf(cmd.Process.Pid, syscall.SIGKILL, func() bool { return true })
	if err != nil || !sent {
		t.Fatalf("sent %v, %v", sent, err)
	}
	cmd.Wait()
	sent, err = KillIf(cmd.Process.Pid, syscall.SIGKILL, func() bool { return true })
	if err != nil || sent {
		t.Fatalf("after exit: sent %v, %v", sent, err)
	}
}
