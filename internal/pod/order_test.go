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
	killed, deleted := 0, 0
	for _, what := range stop {
		switch what {
		case "kill task":
			killed++
		case "delete task":
			deleted++
		case "release network": // what the containers' end leaves to tidy up may take place at the same time
			if killed < 2 {
				t.Errorf("the network goes before the containers have ended: %q", stop)
			}
		}
		if (what == "release pidns" || what == "release cgroup" || what == "release namespaces") && deleted < 2 {
			t.Errorf("%s before both containers are gone: %q", what, stop)
		}
	}
	if deleted < 2 || !slices.Contains(stop, "release network") {
		t.Errorf("the stop did %q", stop)
	}
}
