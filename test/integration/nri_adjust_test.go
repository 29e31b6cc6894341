// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/kubelet"
)

// nriUpdater is told of updates of pods, and refuses one.
type nriUpdater struct{ nriPlugin }

func (p *nriUpdater) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	p.note("update %s to %d+%d", pod.GetName(), resources.GetCpu().GetShares().GetValue(), overhead.GetCpu().GetShares().GetValue())
	if resources.GetCpu().GetShares().GetValue() == 999 {
		return errors.New("too much for this node")
	}
	return nil
}

func (p *nriUpdater) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("updated %s", pod.GetName())
	return nil
}

func TestPluginsSeeUpdatesOfPodsAndMayRefuseThem(t *testing.T) {
	t.Parallel()
	k, socket := nriNode(t, "")
	plugin := &nriUpdater{}
	plugin.connectAs(t, plugin, socket, "updater")
	p := k.RunPod(k.PodConfig("pod"))
	update := func(shares, overhead int64) error {
		_, err := k.D.Runtime.UpdatePodSandboxResources(k.Ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID,
			Resources: &cri.LinuxContainerResources{CpuShares: shares}, Overhead: &cri.LinuxContainerResources{CpuShares: overhead}})
		return err
	}
	if err := update(300, 20); err != nil {
		t.Fatal(err)
	}
	wantError(t, update(999, 0), []codes.Code{codes.FailedPrecondition}, "too much for this node")
	if err := update(400, 20); err != nil {
		t.Fatal(err)
	}
	equal(t, "told", plugin.told(), "sync; run pod; update pod to 300+20; updated pod; update pod to 999+0; update pod to 400+20; updated pod")
}

// adjustment is what a plugin does to a container, and how that shows in it.
type adjustment struct {
	name   string
	adjust func(a *api.ContainerAdjustment)
	shell  string
	want   string
}

func adjustments(dir string) []adjustment {
	linux := func(f func(l *api.LinuxContainerAdjustment)) func(a *api.ContainerAdjustment) {
		return func(a *api.ContainerAdjustment) {
			if a.Linux == nil {
				a.Linux = &api.LinuxContainerAdjustment{}
			}
			f(a.Linux)
		}
	}
	hook := func(name string) *api.Hook {
		return &api.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >/dev/null; echo " + name + " >>" + filepath.Join(dir, "hooks")}}
	}
	return []adjustment{
		{"env", func(a *api.ContainerAdjustment) { a.AddEnv("PLUGIN", "1"); a.AddEnv("OLD", "2") }, "echo $PLUGIN$OLD", "12"},
		{"args", func(a *api.ContainerAdjustment) { a.SetArgs([]string{"sh", "-c", "sleep 1000; true"}) }, "tr '\\0' ' ' </proc/1/cmdline", "sh -c sleep 1000; true"},
		{"mount", func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/plugin", Type: "bind", Source: dir, Options: []string{"bind", "ro"}})
		}, "cat /plugin/file; touch /plugin/x 2>/dev/null || echo ro", "from the host\nro"},
		{"device", func(a *api.ContainerAdjustment) {
			a.AddDevice(&api.LinuxDevice{Path: "/dev/more-zero", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o666))})
		}, "head -c 3 /dev/more-zero | wc -c", "3"},
		{"CDI", func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "example.com/thing=one"}) }, "echo $FROM_CDI", "one"},
		{"rlimit", func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_NOFILE", 78, 77) }, "ulimit -Sn; ulimit -Hn", "77\n78"},
		{"hooks", func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{hook("createRuntime")}, Poststart: []*api.Hook{hook("poststart")}, Poststop: []*api.Hook{hook("poststop")}})
		}, "echo", ""},
		{"namespaces", func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "cgroup"}) }, "echo fine", "fine"},
		{"seccomp", linux(func(l *api.LinuxContainerAdjustment) {
			l.SeccompPolicy = &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Architectures: []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"},
				Syscalls: []*api.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: "SCMP_ACT_ERRNO"}}}
		}), "mkdir /x 2>/dev/null && echo made || echo refused", "refused"},
		{"scheduler", linux(func(l *api.LinuxContainerAdjustment) {
			l.Scheduler = &api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH}
		}),
			"awk '/^policy/ { print $3 }' /proc/1/sched 2>/dev/null || cut -d' ' -f41 /proc/1/stat", "3"},
		{"oom score", func(a *api.ContainerAdjustment) { score := 777; a.SetLinuxOomScoreAdj(&score) }, "cat /proc/1/oom_score_adj", "777"},
		{"pids", func(a *api.ContainerAdjustment) { a.SetLinuxPidLimits(50) }, "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max", "50"},
		{"annotations", func(a *api.ContainerAdjustment) { a.AddAnnotation("example.com/plugin", "1") }, "echo", ""},
	}
}

// TestEveryKindOfAdjustmentShowsInTheContainer has a plugin adjust one thing of each container, which is called after it.
func TestEveryKindOfAdjustmentShowsInTheContainer(t *testing.T) {
	t.Parallel()
	dir, cdi := t.TempDir(), t.TempDir()
	device := `{"cdiVersion":"0.6.0","kind":"example.com/thing","devices":[{"name":"one","containerEdits":{"env":["FROM_CDI=one"]}}]}`
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), []byte("from the host\n"), 0o644), os.WriteFile(filepath.Join(cdi, "thing.json"), []byte(device), 0o644)); err != nil {
		t.Fatal(err)
	}
	k, socket := nriNode(t, fmt.Sprintf("[cdi]\nspec_dirs = [%q]\n", cdi))
	all := map[string]adjustment{}
	for _, a := range adjustments(dir) {
		all[strings.ReplaceAll(strings.ToLower(a.name), " ", "-")] = a
	}
	plugin := &nriPlugin{create: func(c *api.Container) (*api.ContainerAdjustment, error) {
		a := &api.ContainerAdjustment{}
		all[c.GetName()].adjust(a)
		return a, nil
	}}
	plugin.connect(t, socket, "adjuster")
	p := k.RunPod(k.PodConfig("pod"))
	for name, a := range all {
		config := k.Forever(name)
		config.Envs = []*cri.KeyValue{{Key: "OLD", Value: []byte("1")}}
		c := p.Start(config)
		equal(t, a.name, strings.TrimSpace(c.Exec(a.shell)), a.want)
		spec, err := os.ReadFile(filepath.Join(k.D.State, "pods", p.ID, c.ID, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		switch a.name {
		case "annotations":
			contains(t, "spec", string(spec), `"example.com/plugin":"1"`)
		case "namespaces":
			contains(t, "spec", string(spec), `"type":"cgroup"`)
		}
		c.Stop(0)
		c.Remove()
	}
	kubelet.Eventually(t, 20*time.Second, func() string {
		ran, err := os.ReadFile(filepath.Join(dir, "hooks"))
		if got := strings.Join(strings.Fields(string(ran)), " "); err != nil || got != "createRuntime poststart poststop" {
			return fmt.Sprintf("hooks ran: %q, %v", got, err)
		}
		return ""
	})
}

// TestAPluginThatLeavesInTheMiddleOrBreaksIsDropped is about plugins that nobody requires: the pods go on.
func TestAPluginThatLeavesInTheMiddleOrBreaksIsDropped(t *testing.T) {
	t.Parallel()
	k, socket := nriNode(t, "request_timeout = \"1s\"\n")
	p := k.RunPod(k.PodConfig("pod"))
	leaves := &nriPlugin{}
	leaves.create = func(*api.Container) (*api.ContainerAdjustment, error) {
		leaves.stub.Stop()
		return &api.ContainerAdjustment{}, nil
	}
	leaves.connect(t, socket, "leaves")
	equal(t, "a container whose plugin left", p.Start(k.Forever("one")).Exec("echo fine"), "fine")
	garbage := &nriPlugin{create: func(*api.Container) (*api.ContainerAdjustment, error) {
		a := &api.ContainerAdjustment{}
		a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "no such namespace"})
		return a, nil
	}}
	garbage.connect(t, socket, "garbage")
	_, err := p.TryCreate(k.Forever("two"))
	wantError(t, err, []codes.Code{codes.FailedPrecondition}, "no such namespace")
	garbage.stub.Stop()
	kubelet.Eventually(t, 20*time.Second, func() string {
		c, err := p.TryCreate(k.Forever("three"))
		if err != nil {
			return err.Error()
		}
		if err := c.TryStart(); err != nil {
			t.Fatal(err)
		}
		return ""
	})
}
