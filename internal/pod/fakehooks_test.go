// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/nri"
)

// fakeHooks is one plugin that must never be left with a pod or container that is gone: what it was told of is held in the world.
type fakeHooks struct {
	*life
	listening, holds atomic.Int64
	// sync is held for reading by who holds, and by the plugin's synchronization: as in nri, neither comes into the other.
	sync sync.RWMutex
}

// connect synchronizes the plugin of this life: it forgets what is not there any more.
func (f *fakeHooks) connect(m *Manager) {
	f.sync.Lock()
	defer f.sync.Unlock()
	pods, containers := m.HookState()
	known := map[string]bool{}
	for _, p := range pods {
		known["told pod "+p.ID] = true
	}
	for _, c := range containers {
		known["told container "+c.ID] = true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.held {
		if strings.HasPrefix(k, "told ") {
			delete(f.held, k)
		}
	}
	for k := range known {
		f.held[k] = true
	}
	f.listening.Store(1)
}

func (f *fakeHooks) Active() bool { return f.listening.Load() > 0 }

func (f *fakeHooks) Hold() func() {
	f.sync.RLock()
	f.holds.Add(1)
	return func() { f.holds.Add(-1); f.sync.RUnlock() }
}

func (f *fakeHooks) Ask(_ context.Context, e nri.Event, p nri.Pod, _ *nri.Container) error {
	if e == nri.StartContainer {
		return f.call("ask start", func() error { return nil })
	}
	err := f.hold("told pod", p.ID)
	if err != nil { // what is refused is undone, as nri does
		f.forget("told pod " + p.ID)
	}
	return err
}

func (f *fakeHooks) forget(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.held, what)
}

func (f *fakeHooks) Tell(_ context.Context, e nri.Event, p nri.Pod, c *nri.Container) {
	switch e {
	case nri.RemoveSandbox:
		_ = f.call("tell removal of sandbox", func() error { return nil })
		f.forget("told pod " + p.ID)
	case nri.RemoveContainer:
		_ = f.call("tell removal of container", func() error { return nil })
		f.forget("told container " + c.ID)
	default:
		_ = f.call("tell", func() error { return nil })
	}
}

func (f *fakeHooks) CreateContainer(ctx context.Context, p nri.Pod, c nri.Container) (nri.Created, error) {
	err := f.hold("told container", c.ID)
	if err != nil {
		f.forget("told container " + c.ID)
	}
	return nri.Created{Spec: c.Spec, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 7}}, err
}

func (f *fakeHooks) Undo(_ context.Context, _ nri.Pod, c nri.Container) {
	f.forget("told container " + c.ID)
}

func (f *fakeHooks) UpdateContainer(_ context.Context, _ nri.Pod, _ nri.Container, r *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, []nri.Update, error) {
	return r, nil, f.call("ask update", func() error { return nil })
}

func (f *fakeHooks) UpdateSandbox(_ context.Context, _ nri.Pod, overhead, _ *runtimeapi.LinuxContainerResources) error {
	if overhead.GetCpuShares() == refusedShares {
		return nri.ErrRefused
	}
	return f.call("ask update of sandbox", func() error { return nil })
}

// refusedShares are an overhead that the fake plugin refuses.
const refusedShares = 666

func (f *fakeHooks) StopContainer(context.Context, nri.Pod, nri.Container) []nri.Update {
	_ = f.call("tell stop of container", func() error { return nil })
	return nil
}

func TestWhatPluginsDecideIsInForceAndToldOnce(t *testing.T) {
	n, s, c := running(t)
	if got := mustStatus(t, n, c).Resources.GetCpuShares(); got != 7 {
		t.Errorf("cpu shares %d, want what the plugin made of them", got)
	}
	for range 2 {
		if err := n.StopSandbox(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	n.w.mu.Lock()
	stops := 0
	for _, call := range n.w.trace {
		if call == "tell stop of container" {
			stops++
		}
	}
	n.w.mu.Unlock()
	if stops != 1 {
		t.Errorf("the container's end was told %d times", stops)
	}
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
	if held := n.parts.Hooks.(*fakeHooks).holds.Load(); held != 0 {
		t.Errorf("%d holds are left: no plugin could ever connect", held)
	}
}
