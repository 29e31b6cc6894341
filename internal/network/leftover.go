// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// patience is how long plugins that an earlier daemon started may go on before they are killed.
const patience = 2 * time.Second

// endLeftOver waits for the plugins of an attachment that a killed daemon left running, and then kills them. An ADD
// that goes on while its DEL runs would hold an IP address and rules that nobody knows of.
func (n *Network) endLeftOver(ctx context.Context, e entry) {
	kill := time.Now().Add(patience)
	for {
		left := plugins(e.ContainerID)
		if len(left) == 0 {
			return
		}
		if time.Now().After(kill) {
			n.log.Warn("CNI plugins of an earlier daemon are killed", "verb", e.Berth.Running, "sandbox", e.ContainerID, "pids", len(left))
			signal(left)
			kill = time.Now().Add(patience)
		}
		release(left)
		select {
		case <-ctx.Done():
			n.log.Warn("CNI plugins of an earlier daemon still run", "sandbox", e.ContainerID, "error", fmt.Errorf("gave up: %w", context.Cause(ctx)))
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// plugins finds the processes that run for a sandbox by their environment, which plugins hand on to what they start.
// The handles stand for these very processes, even if their numbers are given to others.
func plugins(sandbox string) []*os.Process {
	mark := []byte("CNI_CONTAINERID=" + sandbox + "\x00")
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil
	}
	var found []*os.Process
	for _, path := range paths {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, err := os.FindProcess(pid) // before it is looked at: the number cannot change hands in between
		if err != nil {
			continue
		}
		env, err := os.ReadFile(path) // empty for zombies
		if err != nil || !bytes.Contains(append([]byte{0}, env...), append([]byte{0}, mark...)) {
			_ = p.Release()
			continue
		}
		found = append(found, p)
	}
	return found
}

func signal(processes []*os.Process) {
	for _, p := range processes {
		_ = p.Signal(syscall.SIGKILL) // it may have ended
	}
}

func release(processes []*os.Process) {
	for _, p := range processes {
		_ = p.Release()
	}
}
