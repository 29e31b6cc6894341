// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"io/fs"
	"os/exec"
	"testing"
)

func TestOOMScoresAreSetOfWhoIsMeant(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if err := SetOOMScore(pid, 321, func() bool { return true }); err != nil {
		t.Fatal(err)
	}
	if err := SetOOMScore(pid, 999, func() bool { return false }); err != nil {
		t.Fatal(err)
	}
	if got, err := OOMScore(pid); err != nil || got != 321 {
		t.Errorf("%d, %v", got, err)
	}
	if err := SetOOMScore(pid, 1001, func() bool { return true }); err == nil {
		t.Error("a score that does not exist is taken")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // it was killed: the error is expected
	if err := SetOOMScore(pid, 500, func() bool { return true }); err != nil {
		t.Errorf("of one that has ended: %v", err)
	}
	if _, err := OOMScore(pid); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
