// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A container that ends may still need the network; and what it runs in must not go before it.
func TestContainersEndBeforeWhatTheyRunIn(t *testing.T) {
	w := newWorld()
	n := newNode(t, w, t.TempDir())
	config := podConfig()
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}}}
	s, err := n.RunSandbox(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		c, err := n.CreateContainer(t.Context(), s, containerConfig(name))
		if err == nil {
			err = n.StartContainer(t.Context(), c)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	begin := len(w.trace)
	if err := n.StopSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	stop := w.trace[begin:]
	deleted := 0
	for i, what := range stop {
		if what == "delete task" {
			if deleted++; deleted == 2 && i > slices.Index(stop, "release network") {
				t.Errorf("the network goes before the containers: %q", stop)
			}
		}
		if (what == "release network" || what == "release pidns" || what == "release cgroup" || what == "release namespaces") && deleted < 2 {
			t.Errorf("%s before both containers are gone: %q", what, stop)
		}
	}
	if deleted < 2 || !slices.Contains(stop, "release network") {
		t.Errorf("the stop did %q", stop)
	}
}
