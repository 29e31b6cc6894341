// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeNode is a node of one pod with one container.
type fakeNode struct {
	mu      sync.Mutex
	updates []Update
	evicted chan string
	fail    error
}

func (*fakeNode) HookState() ([]Pod, []Container) {
	return []Pod{{ID: "p1"}}, []Container{{ID: "c1", Pod: "p1"}}
}

func (f *fakeNode) HookUpdate(_ context.Context, updates []Update) ([]Update, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.updates = append(f.updates, updates...)
	if f.fail != nil {
		return updates, nil
	}
	return nil, nil
}

func (f *fakeNode) HookEvict(_ context.Context, id, reason string) error {
	f.evicted <- id + " " + reason
	return nil
}

// plugin records what it is told, and answers as a test wants.
type plugin struct {
	stub   stub.Stub
	mu     sync.Mutex
	events []string
	synced chan struct{}
	// answer, if set, comes before each answer.
	answer func(event string) error
	create func() (*api.ContainerAdjustment, []*api.ContainerUpdate)
}

func (p *plugin) note(event string) error {
	p.mu.Lock()
	p.events = append(p.events, event)
	answer := p.answer
	p.mu.Unlock()
	if answer != nil {
		return answer(event)
	}
	return nil
}

func (p *plugin) setAnswer(f func(event string) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = f
}

func (p *plugin) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	err := p.note(fmt.Sprintf("sync %d %d", len(pods), len(containers)))
	close(p.synced)
	return nil, err
}
func (p *plugin) RunPodSandbox(context.Context, *api.PodSandbox) error    { return p.note("run") }
func (p *plugin) StopPodSandbox(context.Context, *api.PodSandbox) error   { return p.note("stop") }
func (p *plugin) RemovePodSandbox(context.Context, *api.PodSandbox) error { return p.note("remove") }
func (p *plugin) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	err := p.note("create")
	if p.create != nil {
		a, u := p.create()
		return a, u, err
	}
	return nil, nil, err
}
func (p *plugin) StopContainer(context.Context, *api.PodSandbox, *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.note("stop container")
}
func (p *plugin) UpdatePodSandbox(context.Context, *api.PodSandbox, *api.LinuxResources, *api.LinuxResources) error {
	return p.note("update")
}
func (p *plugin) PostUpdatePodSandbox(context.Context, *api.PodSandbox) error {
	return p.note("updated")
}
func (p *plugin) PostCreateContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return p.note("created")
}
func (p *plugin) StartContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return p.note("start")
}
func (p *plugin) PostStartContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return p.note("started")
}
func (p *plugin) UpdateContainer(context.Context, *api.PodSandbox, *api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	return nil, p.note("update container")
}
func (p *plugin) PostUpdateContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return p.note("updated container")
}
func (p *plugin) RemoveContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return p.note("remove container")
}

func start(t *testing.T, cfg Config) (*NRI, *fakeNode) {
	t.Helper()
	return startLogged(t, cfg, slog.DiscardHandler)
}

func startLogged(t *testing.T, cfg Config, log slog.Handler) (*NRI, *fakeNode) {
	t.Helper()
	cfg.Socket = filepath.Join(t.TempDir(), "nri.sock")
	if cfg.PluginDir == "" {
		cfg.PluginDir, cfg.ConfigDir = "/nonexistent", "/nonexistent"
	}
	if cfg.RequestTimeout == 0 {
		cfg.RegistrationTimeout, cfg.RequestTimeout = time.Second, 5*time.Second
	}
	n, err := New(cfg, slog.New(log))
	if err != nil {
		t.Fatal(err)
	}
	node := &fakeNode{evicted: make(chan string, 4)}
	if err := n.Start(node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return n, node
}

func (n *NRI) connect(t *testing.T, index, name string, options ...stub.Option) *plugin {
	t.Helper()
	p := &plugin{synced: make(chan struct{})}
	n.join(t, p, p, index, name, options...)
	return p
}

// join connects a plugin, p, that may be a part of a whole with more abilities.
func (n *NRI) join(t *testing.T, whole any, p *plugin, index, name string, options ...stub.Option) {
	t.Helper()
	before := n.plugins.Load()
	s, err := stub.New(whole, append(options, stub.WithPluginName(name), stub.WithPluginIdx(index), stub.WithSocketPath(n.cfg.Socket))...)
	if err != nil {
		t.Fatal(err)
	}
	p.stub = s
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	eventually(t, "plugin is registered", func() bool { return n.plugins.Load() > before })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

var (
	testPod       = Pod{ID: "p1", Name: "n", Namespace: "ns"}
	testContainer = Container{ID: "c1", Pod: "p1", Spec: []byte(`{"ociVersion":"1.2.0","process":{"args":["x"]},"linux":{}}`)}
)

func TestAPluginIsSynchronizedThenToldInOrder(t *testing.T) {
	n, _ := start(t, Config{})
	if n.Active() {
		t.Error("active without a plugin")
	}
	p := n.connect(t, "10", "one")
	if !n.Active() {
		t.Error("not active with a plugin")
	}
	if err := n.Ask(t.Context(), RunSandbox, testPod, nil); err != nil {
		t.Fatal(err)
	}
	n.Tell(t.Context(), StopSandbox, testPod, nil)
	n.Tell(t.Context(), RemoveSandbox, testPod, nil)
	if got, want := p.told(), []string{"sync 1 1", "run", "stop", "remove"}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	info, err := os.Stat(n.cfg.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
}

func TestARefusalUndoesWhatOthersWereTold(t *testing.T) {
	n, _ := start(t, Config{})
	first, second := n.connect(t, "10", "first"), n.connect(t, "20", "second")
	second.answer = func(event string) error {
		if event == "run" || event == "create" {
			return errors.New("not on my node")
		}
		return nil
	}
	err := n.Ask(t.Context(), RunSandbox, testPod, nil)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not on my node") {
		t.Errorf("run: %v", err)
	}
	if _, err = n.CreateContainer(t.Context(), testPod, testContainer); !errors.Is(err, ErrRefused) {
		t.Errorf("create: %v", err)
	}
	want := []string{"sync 1 1", "run", "stop", "remove", "create", "stop container", "remove container"}
	if got := first.told(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestAdjustmentsAndUpdatesOfOthersComeBack(t *testing.T) {
	n, _ := start(t, Config{})
	p := n.connect(t, "10", "one")
	p.create = func() (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a, u := &api.ContainerAdjustment{}, &api.ContainerUpdate{}
		a.AddEnv("A", "b")
		u.SetContainerId("other")
		u.SetLinuxCPUShares(123)
		return a, []*api.ContainerUpdate{u}
	}
	made, err := n.CreateContainer(t.Context(), testPod, testContainer)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(made.Spec), `"A=b"`) || len(made.Updates) != 1 || made.Updates[0].Container != "other" || made.Updates[0].Resources.CpuShares != 123 {
		t.Errorf("got %s, %v", made.Spec, made.Updates)
	}
}

// TestRemovedVariablesAreGone: the library drops a removal that nothing follows.
func TestRemovedVariablesAreGone(t *testing.T) {
	n, _ := start(t, Config{})
	remove := func(names ...string) func() (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		return func() (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			a := &api.ContainerAdjustment{}
			for _, name := range names {
				a.RemoveEnv(name)
			}
			return a, nil
		}
	}
	c := testContainer
	c.Spec = []byte(`{"ociVersion":"1.2.0","process":{"env":["KEPT=1","GONE=x=y","GONE2=","BACK=1"]},"linux":{}}`)
	n.connect(t, "10", "one").create = remove("GONE", "BACK", "NEVER")
	second := n.connect(t, "20", "two")
	second.create = func() (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.RemoveEnv("GONE2")
		a.AddEnv("BACK", "2")
		return a, nil
	}
	made, err := n.CreateContainer(t.Context(), testPod, c)
	if err != nil {
		t.Fatal(err)
	}
	var got specs.Spec
	if err := json.Unmarshal(made.Spec, &got); err != nil {
		t.Fatal(err)
	}
	if want := []string{"KEPT=1", "BACK=2"}; !slices.Equal(got.Process.Env, want) {
		t.Errorf("environment %q, want %q", got.Process.Env, want)
	}
}

func TestAHangingPluginIsDroppedAndTheRequestGoesOn(t *testing.T) {
	n, _ := start(t, Config{RegistrationTimeout: time.Second, RequestTimeout: 300 * time.Millisecond})
	p := n.connect(t, "10", "slow")
	release := make(chan struct{})
	defer close(release)
	p.answer = func(string) error { <-release; return nil }
	for range 2 {
		if err := n.Ask(t.Context(), RunSandbox, testPod, nil); err != nil {
			t.Error(err)
		}
	}
	if n.Active() {
		t.Error("the plugin is still there")
	}
}

func TestARequiredPluginThatFailsFailsTheRequest(t *testing.T) {
	n, _ := start(t, Config{Required: []string{"guard"}, Exempt: []string{"system"}, RegistrationTimeout: time.Second, RequestTimeout: 300 * time.Millisecond})
	create := func(namespace string) error {
		p := testPod
		p.Namespace = namespace
		_, err := n.CreateContainer(t.Context(), p, testContainer)
		return err
	}
	if err := create("ns"); !errors.Is(err, ErrRequired) || !strings.Contains(err.Error(), `"guard" is not connected`) {
		t.Errorf("without the plugin: %v", err)
	}
	if err := create("system"); err != nil {
		t.Errorf("exempt namespace: %v", err)
	}
	p := n.connect(t, "10", "guard")
	if err := create("ns"); err != nil {
		t.Errorf("with the plugin: %v", err)
	}
	release := make(chan struct{})
	defer close(release)
	p.mu.Lock()
	p.answer = func(event string) error {
		if event == "create" {
			<-release
		}
		return nil
	}
	p.mu.Unlock()
	if err := create("ns"); !errors.Is(err, ErrRequired) || !strings.Contains(err.Error(), "10-guard") {
		t.Errorf("plugin that hangs: %v", err)
	}
	// It is gone now: refused at once.
	begin := time.Now()
	if err := create("ns"); !errors.Is(err, ErrRequired) || time.Since(begin) > 200*time.Millisecond {
		t.Errorf("plugin that is gone: %v after %s", err, time.Since(begin))
	}
	n.connect(t, "10", "guard")
	if err := create("ns"); err != nil {
		t.Errorf("with the plugin back: %v", err)
	}
}

func TestARequiredPluginThatDisconnectsInAHookFailsTheRequest(t *testing.T) {
	n, _ := start(t, Config{Required: []string{"guard"}})
	p := n.connect(t, "10", "guard")
	p.answer = func(string) error { go p.stub.Stop(); time.Sleep(50 * time.Millisecond); return nil }
	if err := n.Ask(t.Context(), RunSandbox, testPod, nil); !errors.Is(err, ErrRequired) {
		t.Errorf("got %v, want ErrRequired", err)
	}
	n.Tell(t.Context(), StopSandbox, testPod, nil) // and nothing hangs afterwards
}

func TestGarbageOnTheSocketHurtsNobody(t *testing.T) {
	n, _ := start(t, Config{RegistrationTimeout: 300 * time.Millisecond, RequestTimeout: 5 * time.Second})
	p := n.connect(t, "10", "good")
	for _, text := range []string{"", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("\xff", 4096), "\x00\x00\x00\x01\x00\x00\x00\x04abcd"} {
		conn, err := net.Dial("unix", n.cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if text == "" { // one that says nothing and stays
			t.Cleanup(func() { conn.Close() })
			continue
		}
		conn.Close()
	}
	if err := n.Ask(t.Context(), RunSandbox, testPod, nil); err != nil {
		t.Fatal(err)
	}
	n.connect(t, "20", "late")
	if got := p.told(); !slices.Contains(got, "run") {
		t.Errorf("told %q", got)
	}
}

func TestUnsolicitedUpdatesReachTheNode(t *testing.T) {
	n, node := start(t, Config{})
	p := n.connect(t, "10", "one")
	u, odd := &api.ContainerUpdate{}, &api.ContainerUpdate{}
	u.SetContainerId("c1")
	u.SetLinuxMemoryLimit(4096)
	odd.SetContainerId("c2")
	odd.SetLinuxPidLimits(5)
	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{u, odd})
	if err != nil || len(failed) != 1 || failed[0].GetContainerId() != "c2" {
		t.Errorf("failed: %v, %v", failed, err)
	}
	want := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4096}
	if len(node.updates) != 1 || node.updates[0].Resources.String() != want.String() {
		t.Errorf("updates: %v", node.updates)
	}
	node.fail = errors.New("no")
	if failed, err = p.stub.UpdateContainers([]*api.ContainerUpdate{u}); err != nil || len(failed) != 1 {
		t.Errorf("failed: %v, %v", failed, err)
	}
}

func TestEvictionsAreReadOffTheWire(t *testing.T) {
	n, node := start(t, Config{})
	n.evict([]*api.ContainerEviction{{ContainerId: "c1", Reason: "too loud"}})
	if got := <-node.evicted; got != "c1 too loud" {
		t.Errorf("evicted %q", got)
	}
	// As the server gets them: the library's own client has no call for it.
	request := &api.UpdateContainersRequest{Evict: []*api.ContainerEviction{{ContainerId: "c2", Reason: "x"}}}
	_, err := n.takeEvictions(t.Context(), func(into any) error {
		into.(*api.UpdateContainersRequest).Evict = request.Evict
		return nil
	}, nil, func(_ context.Context, unmarshal func(any) error) (any, error) {
		return nil, unmarshal(&api.UpdateContainersRequest{})
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := <-node.evicted; got != "c2 x" {
		t.Errorf("evicted %q", got)
	}
}

func TestNobodyIsSynchronizedWhileHeld(t *testing.T) {
	n, _ := start(t, Config{})
	release := n.Hold()
	p := &plugin{synced: make(chan struct{})}
	s, err := stub.New(p, stub.WithPluginName("late"), stub.WithPluginIdx("10"), stub.WithSocketPath(n.cfg.Socket))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	select {
	case <-p.synced:
		t.Error("synchronized while held")
	case <-time.After(100 * time.Millisecond):
	}
	release()
	<-p.synced
}

func TestASocketOfSomebodyElseIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"s": "another process", "f": "not a socket"} {
		n, err := New(Config{Socket: filepath.Join(dir, name), PluginDir: dir, RequestTimeout: time.Second, RegistrationTimeout: time.Second}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Start(&fakeNode{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A plugin made with the nri module, started from the folder of plugins; one that crashes and one that never registers are
// left out.
func TestPluginsOfTheFolderAreStarted(t *testing.T) {
	dir, conf, out := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "out")
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "10-recorder"), "./testdata/recorder")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for name, text := range map[string]string{"20-crasher": "#!/bin/sh\nexit 1\n", "30-sleeper": "#!/bin/sh\nexec sleep 600\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(conf, "recorder.conf"), []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	n, _ := start(t, Config{PluginDir: dir, ConfigDir: conf, RegistrationTimeout: 2 * time.Second, RequestTimeout: 5 * time.Second})
	if err := n.Ask(t.Context(), RunSandbox, testPod, nil); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil || string(got) != "synchronize\nrun p1\n" {
		t.Errorf("recorded %q, %v", got, err)
	}
}
