// SPDX-License-Identifier: Apache-2.0

package slice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

// fakeConn is a systemd that answers as scripted.
type fakeConn struct {
	mu         sync.Mutex
	startErr   error
	stopErr    error
	resetErr   error
	setErr     error
	result     string // of jobs; "" means that they never end
	dead       bool
	closed     int
	properties map[string]string
	calls      []string
}

func (f *fakeConn) StartTransientUnitContext(_ context.Context, name, mode string, p []systemd.Property, done chan<- string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "start "+name+" "+mode)
	f.properties = make(map[string]string)
	for _, property := range p {
		f.properties[property.Name] = property.Value.String()
	}
	return f.job(done), f.startErr
}

func (f *fakeConn) StopUnitContext(_ context.Context, name, mode string, done chan<- string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "stop "+name+" "+mode)
	return f.job(done), f.stopErr
}

func (f *fakeConn) job(done chan<- string) int {
	if f.result != "" {
		done <- f.result
	}
	return 1
}

func (f *fakeConn) ResetFailedUnitContext(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "reset "+name)
	return f.resetErr
}

func (f *fakeConn) SetUnitPropertiesContext(_ context.Context, name string, runtime bool, p ...systemd.Property) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf("set %s %v", name, runtime))
	f.properties = make(map[string]string)
	for _, property := range p {
		f.properties[property.Name] = property.Value.String()
	}
	return f.setErr
}

func (f *fakeConn) Connected() bool { return !f.dead }
func (f *fakeConn) Close()          { f.closed++ }

func with(conns ...*fakeConn) *Manager {
	return &Manager{dial: func(context.Context) (conn, error) {
		if len(conns) == 0 {
			return nil, errors.New("nobody listens")
		}
		next := conns[0]
		conns = conns[1:]
		return next, nil
	}}
}

func TestStartTiesTheSliceToItsParentAndAccounts(t *testing.T) {
	f := &fakeConn{result: "done"}
	if err := with(f).Start(context.Background(), "kubepods-burstable-pod1.slice"); err != nil {
		t.Fatal(err)
	}
	if len(f.calls) != 1 || f.calls[0] != "start kubepods-burstable-pod1.slice replace" {
		t.Errorf("calls %v", f.calls)
	}
	for name, want := range map[string]string{"Wants": `["kubepods-burstable.slice"]`, "DefaultDependencies": "false",
		"MemoryAccounting": "true", "CPUAccounting": "true", "TasksAccounting": "true", "IOAccounting": "true"} {
		if got := f.properties[name]; got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	if err := with(f).Start(context.Background(), "kubepods.slice"); err != nil {
		t.Fatal(err)
	}
	if wants, ok := f.properties["Wants"]; ok {
		t.Errorf("a top-level slice wants %s", wants)
	}
}

func TestStartAndStopAreIdempotent(t *testing.T) {
	noUnit := dbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit"}
	f := &fakeConn{startErr: dbus.Error{Name: "org.freedesktop.systemd1.UnitExists"}, stopErr: &noUnit, resetErr: noUnit}
	m := with(f)
	if err := m.Start(context.Background(), "a.slice"); err != nil {
		t.Error(err)
	}
	if err := m.Stop(context.Background(), "a.slice"); err != nil {
		t.Error(err)
	}
}

func TestFailuresAreTold(t *testing.T) {
	ctx := context.Background()
	if err := with(&fakeConn{result: "failed"}).Start(ctx, "a.slice"); err == nil || !strings.Contains(err.Error(), `"failed"`) {
		t.Errorf("failed job: %v", err)
	}
	if err := with(&fakeConn{stopErr: errors.New("no")}).Stop(ctx, "a.slice"); err == nil {
		t.Error("failed stop is swallowed")
	}
	if err := with(&fakeConn{result: "done", resetErr: errors.New("no")}).Stop(ctx, "a.slice"); err == nil {
		t.Error("failed reset is swallowed")
	}
	if err := with().Start(ctx, "a.slice"); !errors.Is(err, ErrNoSystemd) {
		t.Errorf("no systemd: %v", err)
	}
	for _, name := range []string{"a.scope", "/a.slice", ""} {
		m := with(&fakeConn{result: "done"})
		if err := errors.Join(m.Start(ctx, name)); !errors.Is(err, cgroup.ErrInvalid) {
			t.Errorf("Start(%q) = %v", name, err)
		}
		if err := m.Stop(ctx, name); !errors.Is(err, cgroup.ErrInvalid) {
			t.Errorf("Stop(%q) = %v", name, err)
		}
	}
}

func TestAStuckSystemdIsGivenUpWithTheContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := with(&fakeConn{}).Start(ctx, "a.slice"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start = %v", err)
	}
}

func TestReconnectsAfterTheBusWentAway(t *testing.T) {
	first, second := &fakeConn{result: "done"}, &fakeConn{result: "done"}
	m := with(first, second)
	for range 2 {
		if err := m.Start(context.Background(), "a.slice"); err != nil {
			t.Fatal(err)
		}
		first.dead = true
	}
	if len(first.calls) != 1 || len(second.calls) != 1 || first.closed != 1 {
		t.Errorf("first %v closed %d, second %v", first.calls, first.closed, second.calls)
	}
	m.Close()
	if second.closed != 1 {
		t.Error("Close leaves the connection open")
	}
	if err := m.Start(context.Background(), "a.slice"); !errors.Is(err, ErrNoSystemd) {
		t.Errorf("Start after Close = %v", err)
	}
}

func TestTheHostsSystemd(t *testing.T) {
	if _, err := os.Stat("/run/systemd/private"); err != nil || os.Geteuid() != 0 {
		t.Skip("no systemd here, or not root: TestWithoutSystemdTheErrorIsClear; make test-vm has both")
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	m := New()
	t.Cleanup(m.Close)
	top := fmt.Sprintf("berth_t_%06x", rand.IntN(1<<24))
	name := top + "-pod1.slice"
	path, err := cgroup.ExpandSlice(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(context.Background(), top+".slice"); err != nil {
			t.Error(err)
		}
		if found, err := h.Exists("/" + top + ".slice"); found || err != nil {
			t.Errorf("the stopped parent is still there: %v, %v", found, err)
		}
	})
	for range 2 { // the kubelet may have made it
		if err := m.Start(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := h.Exists(path); !found || err != nil {
		t.Fatalf("%s: %v, %v", path, found, err)
	}
	want := cgroup.Limits{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 << 20, Swap: 96 << 20}
	if err := m.SetLimits(t.Context(), name, want, h.Mode() == cgroup.Unified); err != nil {
		t.Fatal(err)
	}
	if got, err := h.ReadLimits(path); err != nil || !got.Same(cgroup.Limits{CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 << 20}) {
		t.Errorf("limits are %+v, %v; want %+v", got, err, want)
	}
	for range 2 {
		if err := m.Stop(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := h.Exists(path); found || err != nil {
		t.Errorf("%s after the stop: %v, %v", path, found, err)
	}
}

func TestWithoutSystemdTheErrorIsClear(t *testing.T) {
	if _, err := os.Stat("/run/systemd/private"); err == nil {
		t.Skip("this host runs systemd: TestTheHostsSystemd")
	}
	m := New()
	defer m.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := m.Connect(ctx); !errors.Is(err, ErrNoSystemd) {
		t.Errorf("Connect = %v; want ErrNoSystemd", err)
	}
	if err := m.Start(ctx, "berth-t.slice"); !errors.Is(err, ErrNoSystemd) {
		t.Errorf("Start = %v; want ErrNoSystemd", err)
	}
}

func TestLimitsHaveSystemdsNamesAndUnits(t *testing.T) {
	const none = "@t 18446744073709551615"
	for name, c := range map[string]struct {
		limits  cgroup.Limits
		unified bool
		want    map[string]string
	}{
		"v2": {cgroup.Limits{CPUShares: 1024, CPUQuota: 12345, CPUPeriod: 100000, Memory: 100, Swap: 150}, true, map[string]string{"CPUWeight": "@t 100",
			"CPUQuotaPerSecUSec": "@t 130000", "CPUQuotaPeriodUSec": "@t 100000", "MemoryMax": "@t 100", "MemorySwapMax": "@t 50"}},
		"v1":       {cgroup.Limits{CPUShares: 1024, Memory: 100, Swap: 150}, false, map[string]string{"CPUShares": "@t 1024", "MemoryLimit": "@t 100"}},
		"no limit": {cgroup.Limits{CPUQuota: -1, Memory: -1, Swap: -1}, true, map[string]string{"CPUQuotaPerSecUSec": none, "MemoryMax": none, "MemorySwapMax": none}},
		"quota":    {cgroup.Limits{CPUQuota: 150000}, true, map[string]string{"CPUQuotaPerSecUSec": "@t 1500000"}},
	} {
		f := &fakeConn{}
		if err := with(f).SetLimits(t.Context(), "kubepods-pod1.slice", c.limits, c.unified); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(f.properties, c.want) || len(f.calls) != 1 || f.calls[0] != "set kubepods-pod1.slice true" {
			t.Errorf("%s: %v %v, want %v", name, f.calls, f.properties, c.want)
		}
	}
	if err := with().SetLimits(t.Context(), "a.slice", cgroup.Limits{}, true); err != nil {
		t.Errorf("nothing to set asks systemd: %v", err)
	}
	if err := with(&fakeConn{setErr: errors.New("no such unit")}).SetLimits(t.Context(), "a.slice", cgroup.Limits{Memory: 1}, true); err == nil {
		t.Error("systemd's error is lost")
	}
}
