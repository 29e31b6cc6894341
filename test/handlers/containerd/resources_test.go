// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestPauseAndResume(t *testing.T) {
	n := start(t)
	c := n.create("pause", nil, nil, sh("while :; do echo x; sleep 0.01; done")).start()
	n.until("output", func() bool { return c.stdout.String() != "" })
	if err := c.task.Pause(n.ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := c.task.Status(n.ctx); err != nil || s.Status != client.Paused {
		t.Errorf("status %v, %v; want paused", s.Status, err)
	}
	if err := c.task.Resume(n.ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := c.task.Status(n.ctx); err != nil || s.Status != client.Running {
		t.Errorf("status %v, %v; want running", s.Status, err)
	}
	before := len(c.stdout.String())
	n.until("more output", func() bool { return len(c.stdout.String()) > before })
	if err := c.task.Pause(n.ctx); err != nil {
		t.Fatal(err)
	}
	c.kill(syscall.SIGKILL) // also what is frozen
	c.ended()
	c.delete()
}

// figures of a container, of either version of cgroups.
type figures struct{ memory, memoryLimit, cpu, pids uint64 }

func (c *container) figures() figures {
	c.Helper()
	metric, err := c.task.Metrics(c.ctx)
	if err != nil {
		c.Fatal(err)
	}
	data, err := typeurl.UnmarshalAny(metric.Data)
	if err != nil {
		c.Fatal(err)
	}
	switch m := data.(type) {
	case *v1.Metrics:
		if m.Memory.TotalRSS == 0 {
			c.Error("no resident memory")
		}
		return figures{m.Memory.Usage.Usage, m.Memory.Usage.Limit, m.CPU.Usage.Total, m.Pids.Current}
	case *v2.Metrics:
		if m.Memory.Anon == 0 {
			c.Error("no anonymous memory")
		}
		return figures{m.Memory.Usage, m.Memory.UsageLimit, m.CPU.UsageUsec, m.Pids.Current}
	default:
		c.Fatalf("metrics are a %T", data)
		return figures{}
	}
}

func TestStatsAndUpdate(t *testing.T) {
	n := start(t)
	c := n.create("stats", nil, nil, oci.WithMemoryLimit(64<<20), sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo up; sleep 1000 & wait")).start()
	n.until("it is up", func() bool { return c.stdout.String() == "up\n" })
	var f figures
	n.until("two processes", func() bool { f = c.figures(); return f.pids == 2 })
	if f.memory == 0 || f.cpu == 0 || f.memoryLimit != 64<<20 {
		t.Errorf("figures %+v", f)
	}
	limit := int64(32 << 20)
	if err := c.task.Update(n.ctx, client.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})); err != nil {
		t.Fatal(err)
	}
	if f := c.figures(); f.memoryLimit != 32<<20 {
		t.Errorf("limit %d after the update", f.memoryLimit)
	}
	c.kill(syscall.SIGKILL)
	c.ended()
	c.delete()
}

// journal is what containerd was told of one container, in order.
type journal struct {
	mu     sync.Mutex
	topics []string
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.topics)
}

// listen keeps the topics of the container's events until the test ends.
func (n *node) listen(id string) *journal {
	ctx, cancel := context.WithCancel(n.ctx)
	n.Cleanup(cancel)
	j := &journal{}
	events, _ := n.client.Subscribe(ctx, `topic~="^/tasks/"`)
	go func() {
		for e := range events {
			event, err := typeurl.UnmarshalAny(e.Event)
			if err != nil {
				continue
			}
			topic := strings.TrimPrefix(e.Topic, "/tasks/")
			if named, ok := event.(interface{ GetContainerID() string }); !ok || named.GetContainerID() != id {
				continue
			}
			if exit, ok := event.(*apievents.TaskExit); ok && exit.ID != id {
				topic += " " + exit.ID
			}
			j.mu.Lock()
			j.topics = append(j.topics, topic)
			j.mu.Unlock()
		}
	}()
	return j
}

// has waits until containerd has been told of a topic.
func (j *journal) has(n *node, topic string) {
	n.Helper()
	n.until("event "+topic, func() bool { return slices.Contains(j.all(), topic) })
}

func TestEventsTellALifeInOrder(t *testing.T) {
	n := start(t)
	j := n.listen("events")
	c := n.create("events", nil, nil, oci.WithProcessArgs("sleep", "1000")).start()
	c.exec("e", nil, "true")
	j.has(n, "exit e")
	if err := c.task.Pause(n.ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.task.Resume(n.ctx); err != nil {
		t.Fatal(err)
	}
	c.kill(syscall.SIGKILL)
	c.ended()
	j.has(n, "exit")
	c.delete()
	j.has(n, "delete")
	got := slices.DeleteFunc(j.all(), func(topic string) bool { return topic == "exit e" }) // it comes before or after the exec's delete
	want := []string{"create", "start", "exec-added", "exec-started", "delete", "paused", "resumed", "exit", "delete"}
	if !slices.Equal(got, want) {
		t.Errorf("events %v\nwant   %v", got, want)
	}
}

func TestAProcessThatEndsAtOnceHasStartedFirst(t *testing.T) {
	n := start(t)
	for _, id := range []string{"quick1", "quick2", "quick3"} {
		j := n.listen(id)
		c := n.create(id, nil, nil, oci.WithProcessArgs("true")).start()
		c.ended()
		j.has(n, "exit")
		c.delete()
		j.has(n, "delete")
		if got := j.all(); !slices.Equal(got, []string{"create", "start", "exit", "delete"}) {
			t.Errorf("events %v", got)
		}
	}
}

func TestOutOfMemoryIsTold(t *testing.T) {
	n := start(t)
	j := n.listen("oom")
	c := n.create("oom", nil, nil, oci.WithMemoryLimit(16<<20), sh("dd if=/dev/zero of=/dev/null bs=64M count=1")).start()
	if code := c.ended(); code == 0 {
		t.Error("it had all the memory that it wanted")
	}
	j.has(n, "oom")
	c.delete()
}
