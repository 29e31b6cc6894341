// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/nri"
)

type resources = runtimeapi.LinuxContainerResources

func TestUpdatedResourcesAreThoseInForce(t *testing.T) {
	n, _, c := running(t)
	if err := n.UpdateResources(t.Context(), c, &resources{MemoryLimitInBytes: 4096 + 5, OomScoreAdj: -900}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := mustStatus(t, n, c).Resources; got.MemoryLimitInBytes != 4096 || got.OomScoreAdj != oomFloor {
			t.Errorf("status has %v", got)
		}
		n = n.restart(t)
	}
	if n.w.oomScore != oomFloor {
		t.Errorf("oom score was set to %d", n.w.oomScore)
	}
	before := len(n.w.trace)
	if err := n.UpdateResources(t.Context(), c, &resources{MemoryLimitInBytes: 8192, OomScoreAdj: oomFloor}); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(n.w.trace[before:], "set oom score") {
		t.Error("a score that is in force is set again")
	}
}

func TestAPodsResourcesReachItsCgroupAndTheNextLife(t *testing.T) {
	n, s, _ := running(t)
	ask := func(containers, overhead *resources) error {
		return n.UpdateSandboxResources(t.Context(), s, containers, overhead)
	}
	if err := ask(&resources{CpuShares: 100}, &resources{CpuShares: 11}); err != nil {
		t.Fatal(err)
	}
	if got := n.w.limits[s].GetCpuShares(); got != 111 {
		t.Errorf("the cgroup has %d shares", got)
	}
	if err := ask(nil, &resources{CpuShares: 12}); err != nil {
		t.Fatal(err)
	}
	n = n.restart(t)
	sandbox, err := n.SandboxByID(s)
	if err != nil {
		t.Fatal(err)
	}
	if st := sandbox.Status(); !strings.Contains(string(st.Resources), "100") || !strings.Contains(string(st.Overhead), "12") {
		t.Errorf("kept: %s, %s", st.Resources, st.Overhead)
	}
	for name, err := range map[string]error{"bad": ask(&resources{CpuShares: -1}, nil), "unknown": n.UpdateSandboxResources(t.Context(), "none", nil, nil)} {
		if want := map[string]error{"bad": ErrInvalid, "unknown": ErrNotFound}[name]; !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n.w.mu.Lock()
	n.w.fault = fault{at: n.w.calls + 1, kind: "error before"}
	n.w.mu.Unlock()
	if err := ask(&resources{CpuShares: 900}, nil); !errors.Is(err, errFault) {
		t.Error(err)
	}
	if st := sandbox.Status(); strings.Contains(string(st.Resources), "900") {
		t.Error("limits that were refused are recorded")
	}
	if err := n.StopSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := ask(&resources{CpuShares: 1}, nil); !errors.Is(err, ErrState) {
		t.Errorf("stopped: %v", err)
	}
}

func TestPluginsMayRefuseAPodsResources(t *testing.T) {
	n, s, _ := running(t)
	before := len(n.w.trace)
	if err := n.UpdateSandboxResources(t.Context(), s, nil, &resources{CpuShares: refusedShares}); !errors.Is(err, nri.ErrRefused) {
		t.Error(err)
	}
	if slices.Contains(n.w.trace[before:], "limit cgroup") {
		t.Error("refused resources reached the cgroup")
	}
	if err := n.UpdateSandboxResources(t.Context(), s, nil, &resources{CpuShares: 2}); err != nil || !slices.Contains(n.w.trace[before:], "ask update of sandbox") {
		t.Error(n.w.trace[before:], err)
	}
}
