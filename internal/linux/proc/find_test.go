// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestFind(t *testing.T) {
	args := []string{"sleep", fmt.Sprintf("100.%d", os.Getpid())}
	start := func(as *syscall.Credential) ID {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		id, ok := Identify(cmd.Process.Pid)
		if !ok {
			t.Fatalf("no process %d", cmd.Process.Pid)
		}
		return id
	}
	look := func() []ID {
		found, err := Find(func(a []string) bool { return slices.Equal(a, args) })
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	mine := start(nil)
	if os.Geteuid() == 0 {
		start(&syscall.Credential{Uid: 65534, Gid: 65534}) // it calls itself the same
	}
	if found := look(); !slices.Equal(found, []ID{mine}) {
		t.Errorf("found %v, want %v", found, mine)
	}
	if err := syscall.Kill(mine.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); mine.Runs() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if found := look(); len(found) > 0 || mine.Runs() {
		t.Errorf("found %v after the end", found)
	}
}
