// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// nriPlugin is a plugin in the test's own process. What it does is set before it connects.
type nriPlugin struct {
	stub   stub.Stub
	index  string // among the plugins; empty: 10
	create func(*api.Container) (*api.ContainerAdjustment, error)
	run    func(*api.PodSandbox) error

	mu     sync.Mutex
	events []string
}

func (p *nriPlugin) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, fmt.Sprintf(format, args...))
}

func (p *nriPlugin) told() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.events, "; ")
}

func (p *nriPlugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.note("sync")
	for _, c := range containers {
		p.note("has %s", c.GetName())
	}
	return nil, nil
}

func (p *nriPlugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("run %s", pod.GetName())
	if p.run != nil {
		return p.run(pod)
	}
	return nil
}

func (p *nriPlugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create %s", c.GetName())
	if p.create == nil {
		return nil, nil, nil
	}
	a, err := p.create(c)
	return a, nil, err
}

func (p *nriPlugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("started %s", c.GetName())
	return nil
}

func (p *nriPlugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stopped %s", c.GetName())
	return nil, nil
}

func (p *nriPlugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("removed %s", c.GetName())
	return nil
}

// nriNode is a node that plugins can connect to at the socket returned.
func nriNode(t *testing.T, config string) (*kubelet.Kubelet, string) {
	t.Helper()
	berthOnly(t)
	dir, err := os.MkdirTemp("", "nri") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "nri.sock")
	return node(t, daemon.Spec{Config: fmt.Sprintf("\n[nri]\nenable = true\nsocket = %q\nplugin_dir = %q\nplugin_config_dir = %[2]q\n%s", socket, dir, config)}), socket
}

// connect waits until the plugin has been synchronized.
func (p *nriPlugin) connect(t *testing.T, socket, name string, options ...stub.Option) {
	t.Helper()
	p.connectAs(t, p, socket, name, options...)
}

// connectAs is connect for a plugin, of more abilities, that p is a part of.
func (p *nriPlugin) connectAs(t *testing.T, whole any, socket, name string, options ...stub.Option) {
	t.Helper()
	s, err := stub.New(whole, append(options, stub.WithPluginName(name), stub.WithPluginIdx(cmp.Or(p.index, "10")), stub.WithSocketPath(socket))...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.stub = s
	t.Cleanup(s.Stop)
	kubelet.Eventually(t, 20*time.Second, func() string {
		if strings.Contains(p.told(), "sync") {
			return ""
		}
		return "plugin is not synchronized"
	})
}

func TestPluginsAdjustContainersAndSeeTheirLife(t *testing.T) {
	t.Parallel()
	k, socket := nriNode(t, "")
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "f"), []byte("from the plugin"), 0o644); err != nil {
		t.Fatal(err)
	}
	plugin := &nriPlugin{create: func(*api.Container) (*api.ContainerAdjustment, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("PLUGIN", "was here")
		a.AddMount(&api.Mount{Destination: "/plugin", Type: "bind", Source: host, Options: []string{"bind", "ro"}})
		a.AddRlimit("RLIMIT_NOFILE", 77, 77)
		a.AddDevice(&api.LinuxDevice{Path: "/dev/also-null", Type: "c", Major: 1, Minor: 3, FileMode: api.FileMode(os.FileMode(0o666))})
		a.SetLinuxMemoryLimit(64 << 20)
		a.SetLinuxCPUShares(321)
		return a, nil
	}}
	early := k.RunPod(k.PodConfig("early"))
	early.Start(k.Forever("before"))
	plugin.connect(t, socket, "adjuster")
	p := k.RunPod(k.PodConfig("pod"))
	c := p.Start(k.Forever("main"))
	equal(t, "in the container", c.Exec("echo $PLUGIN, $(cat /plugin/f), $(ulimit -n); echo x > /dev/also-null && echo ok"), "was here, from the plugin, 77\nok")
	r := c.Status().GetResources().GetLinux()
	equal(t, "memory limit in the status", r.GetMemoryLimitInBytes(), 64<<20)
	equal(t, "cpu shares in the status", r.GetCpuShares(), 321)
	// An update of one value keeps what the plugin made of the others, before the start and after.
	created := p.Create(k.Forever("created"))
	for _, u := range []*kubelet.Container{c, created} {
		if _, err := k.D.Runtime.UpdateContainerResources(k.Ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: u.ID,
			Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}}); err != nil {
			t.Fatal(err)
		}
		r = u.Status().GetResources().GetLinux()
		equal(t, "updated memory limit", r.GetMemoryLimitInBytes(), 32<<20)
		equal(t, "cpu shares after the update", r.GetCpuShares(), 321)
	}
	if err := created.TryStart(); err != nil {
		t.Fatal(err)
	}
	equal(t, "environment after an update before the start", created.Exec("echo $PLUGIN"), "was here")
	// Unsolicited.
	u := &api.ContainerUpdate{}
	u.SetContainerId(c.ID)
	u.SetLinuxCPUShares(555)
	if failed, err := plugin.stub.UpdateContainers([]*api.ContainerUpdate{u}); err != nil || len(failed) > 0 {
		t.Errorf("unsolicited update: %v, %v", failed, err)
	}
	equal(t, "cpu shares after an unsolicited update", c.Status().GetResources().GetLinux().GetCpuShares(), 555)
	created.Remove()
	c.Stop(0)
	c.Remove()
	equal(t, "told", plugin.told(), "sync; has before; run pod; create main; started main; create created; started created; stopped created; removed created; stopped main; removed main")
}

func TestPluginsThatRefuseOrHangPoisonNothing(t *testing.T) {
	t.Parallel()
	k, socket := nriNode(t, "request_timeout = \"500ms\"\nrequired_plugins = [\"guard\"]\nrequired_exempt_namespaces = [\"system\"]\n")
	free := k.PodConfig("free")
	free.Metadata.Namespace = "system"
	k.RunPod(free).Start(k.Forever("plugin"))
	p := k.RunPod(k.PodConfig("pod"))
	_, err := p.TryCreate(k.Forever("unguarded"))
	wantError(t, err, []codes.Code{codes.Unavailable}, `"guard" is not connected`)

	var mu sync.Mutex
	mode := ""
	set := func(m string) { mu.Lock(); defer mu.Unlock(); mode = m }
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	guard := &nriPlugin{create: func(*api.Container) (*api.ContainerAdjustment, error) {
		mu.Lock()
		now := mode
		mu.Unlock()
		switch now {
		case "refuse":
			return nil, errors.New("not today")
		case "hang":
			<-hang
		}
		return nil, nil
	}}
	guard.connect(t, socket, "guard")
	guarded := p.Start(k.Forever("guarded"))
	set("refuse")
	_, err = p.TryCreate(k.Forever("refused"))
	wantError(t, err, []codes.Code{codes.FailedPrecondition}, "not today")
	set("hang")
	begin := time.Now()
	_, err = p.TryCreate(k.Forever("refused"))
	wantError(t, err, []codes.Code{codes.Unavailable}, "10-guard")
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s to fail", took)
	}
	set("")
	equal(t, "others", guarded.Exec("echo fine"), "fine")
	_, err = p.TryCreate(k.Forever("refused"))
	wantError(t, err, []codes.Code{codes.Unavailable}, `"guard" is not connected`)
	again := &nriPlugin{}
	again.connect(t, socket, "guard")
	contains(t, "synchronization", again.told(), "has guarded", "has plugin")
	if strings.Contains(again.told(), "refused") {
		t.Errorf("a refused container is still there: %s", again.told())
	}
	p.Start(k.Forever("refused")) // the same name, now with success
}

func TestNothingIsSeenBeforeItsHookEnds(t *testing.T) {
	t.Parallel()
	k, socket := nriNode(t, "")
	reached, release := make(chan string, 1), make(chan struct{})
	plugin := &nriPlugin{run: func(pod *api.PodSandbox) error {
		reached <- pod.GetId()
		<-release
		return nil
	}}
	plugin.connect(t, socket, "slow")
	done := make(chan error, 1)
	go func() {
		_, err := k.TryRunPod(k.PodConfig("pod"))
		done <- err
	}()
	id := <-reached
	_, err := k.D.Runtime.PodSandboxStatus(k.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: id})
	wantError(t, err, []codes.Code{codes.NotFound})
	list, err := k.D.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("listed: %v, %v", list, err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
