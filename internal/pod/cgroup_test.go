// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inShared is a pod in a cgroup that others may live in, too.
func inShared(name string) *runtimeapi.PodSandboxConfig {
	c := podConfig()
	c.Metadata.Name, c.Linux.CgroupParent = name, "/shared"
	return c
}

func mustRun(t *testing.T, n *node, c *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	id, err := n.RunSandbox(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// begin runs f in the background.
func begin(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// cgroupCalls are what was done to cgroups, in order.
func (w *world) cgroupCalls() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.trace), func(c string) bool { return c != "acquire cgroup" && c != "release cgroup" })
}

func TestAPodWaitsForTheRemovalOfTheCgroupThatItShallLiveIn(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	first := mustRun(t, n, inShared("first"))
	g := n.w.waitIn("release cgroup")
	removed := begin(func() error { return n.RemoveSandbox(t.Context(), first) })
	<-g.reached
	ctx, cancel := context.WithCancel(t.Context())
	second := begin(func() error { _, err := n.RunSandbox(ctx, inShared("second"), ""); return err })
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller's patience has ended: %v", err)
	}
	time.Sleep(20 * time.Millisecond) // time enough to make a mistake; its absence does not hang on it
	close(g.open)
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
	id := mustRun(t, n, inShared("second"))
	if calls := n.w.cgroupCalls(); !slices.Equal(calls, []string{"acquire cgroup", "release cgroup", "acquire cgroup"}) {
		t.Errorf("got %q", calls)
	}
	if err := n.RemoveSandbox(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}

func TestAPodThatIsAboutToLiveInACgroupTakesItOver(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	first := mustRun(t, n, inShared("first"))
	g := n.w.waitIn("cgroup exists")
	made := begin(func() error { _, err := n.RunSandbox(t.Context(), inShared("second"), ""); return err })
	<-g.reached
	if err := n.RemoveSandbox(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	close(g.open)
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	if calls := n.w.cgroupCalls(); !slices.Equal(calls, []string{"acquire cgroup", "acquire cgroup"}) {
		t.Errorf("got %q", calls)
	}
	if err := n.RemoveSandbox(t.Context(), mustRun(t, n, inShared("second"))); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}

func TestACgroupThatCannotBeRemovedIsTriedAgainOrTakenOver(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	first := mustRun(t, n, inShared("first"))
	n.w.failNext("release cgroup")
	if err := n.RemoveSandbox(t.Context(), first); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	second := mustRun(t, n, inShared("second"))
	for _, id := range []string{first, second} {
		if err := n.RemoveSandbox(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if calls := n.w.cgroupCalls(); !slices.Equal(calls, []string{"acquire cgroup", "release cgroup", "acquire cgroup", "release cgroup"}) {
		t.Errorf("got %q", calls)
	}
	n.mustBeEmpty(t)
}

func TestAHandlerMayMakeCgroupsItselfBelowSlices(t *testing.T) {
	for _, c := range []struct{ driver, handler, parent, want string }{
		{"systemd", "runc", "kubepods-pod1.slice", "kubepods-pod1.slice:berth:c1"},
		{"systemd", "own", "kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice/c1"},
		{"systemd", "own", "/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice/c1"},
		{"cgroupfs", "own", "/kubepods/pod1", "/kubepods/pod1/c1"},
	} {
		m := &Manager{cfg: Config{CgroupDriver: c.driver, CgroupfsHandlers: []string{"own"}}}
		s := &Sandbox{m: m, Handler: c.handler}
		s.rec.CgroupParent = c.parent
		if got := s.cgroupsPath("c1"); got != c.want {
			t.Errorf("%s, handler %s: got %s, want %s", c.driver, c.handler, got, c.want)
		}
	}
}
