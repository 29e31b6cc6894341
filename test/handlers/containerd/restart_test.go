// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
)

func TestARestartedContainerdFindsItsContainers(t *testing.T) {
	n := start(t)
	r, w := pipe(t)
	stays := n.create("stays", r, nil, sh("read line; echo got $line; exit 4")).start()
	defer w.Close()
	goes := n.create("goes", nil, nil, sh("sleep 0.5; exit 6")).start()
	if err := n.d.Kill(); err != nil {
		t.Fatal(err)
	}
	n.until("one ends while containerd is away", func() bool { return !alive(int(goes.task.Pid())) })
	if err := n.d.Launch(n.ctx); err != nil {
		t.Fatal(err)
	}
	stays.reattach()
	// Of one that has no process any more, a containerd that starts deletes the task by itself.
	if _, err := goes.Task(n.ctx, nil); err == nil {
		t.Error("the task that ended is still known")
	}
	w.WriteString("it\n")
	if code := stays.ended(); code != 4 {
		t.Errorf("exit code %d of the one that stayed, want 4", code)
	}
	stays.delete()
	// Both the first client and the one that has attached read the FIFO: whichever got it passes it on.
	n.until("its output", func() bool { return stays.stdout.String() == "got it\n" })
}

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// reattach loads the task anew; the streams of the old one, which is the same process's, stay in use.
func (c *container) reattach() {
	c.Helper()
	streams := cio.NewAttach(cio.WithStreams(nil, c.stdout, c.stderr))
	task, err := c.Task(c.ctx, streams)
	if err != nil {
		c.Fatal(err)
	}
	c.task = task
	if c.wait, err = task.Wait(c.ctx); err != nil {
		c.Fatal(err)
	}
}

// shimPID finds the shim that serves the container.
func (c *container) shimPID() int {
	c.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		c.Fatal(err)
	}
	for _, file := range found {
		line, err := os.ReadFile(file) // an error: it has ended
		args := strings.Split(string(line), "\x00")
		if err == nil && strings.HasSuffix(args[0], "containerd-shim-berth-v1") && strings.Contains(string(line), "\x00"+c.ID()+"\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				c.Fatal(err)
			}
			return pid
		}
	}
	c.Fatal("no shim")
	return 0
}

func TestAKilledShimIsCleanedUpAfter(t *testing.T) {
	n := start(t)
	j := n.listen("victim")
	c := n.create("victim", nil, nil, sh("sleep 1000 & sleep 1000")).start()
	init := int(c.task.Pid())
	if err := syscall.Kill(c.shimPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	j.has(n, "exit")
	j.has(n, "delete")
	n.until("its processes are gone", func() bool { return !alive(init) })
	if _, err := c.task.Status(n.ctx); err == nil {
		t.Error("the task is still known")
	}
}

func TestContainersOfAGroupShareAShim(t *testing.T) {
	n := start(t)
	group := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "pod"})
	one := n.create("one", nil, nil, oci.WithProcessArgs("sleep", "1000"), group).start()
	two := n.create("two", nil, nil, oci.WithProcessArgs("sleep", "1000"), group).start()
	parents := map[string]bool{}
	for _, c := range []*container{one, two} {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(int(c.task.Pid())) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
		parents[fields[2]] = true
	}
	if len(parents) != 1 {
		t.Errorf("parents %v, want one", parents)
	}
	one.kill(syscall.SIGKILL)
	one.ended()
	one.delete()
	if s, err := two.task.Status(n.ctx); err != nil || s.Status != client.Running {
		t.Errorf("the other one: %v, %v", s.Status, err)
	}
	two.kill(syscall.SIGKILL)
	two.ended()
	two.delete()
}

func TestWhatItCannotDoIsSaid(t *testing.T) {
	n := start(t)
	c := n.create("cannot", nil, nil, oci.WithProcessArgs("sleep", "1000")).start()
	if _, err := c.task.Checkpoint(n.ctx); err == nil || !strings.Contains(err.Error(), "checkpoints are not available from this shim") {
		t.Errorf("checkpoint: %v", err)
	}
	c.kill(syscall.SIGKILL)
	c.ended()
	c.delete()
}
