// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/selinux"
)

// fakeLabels are those of a daemon's life: a label is its type and its level.
type fakeLabels struct {
	*life
	mine    sync.Mutex // guards all below
	last    int
	holders map[string]int
	of      map[string]string // the label of each file that got one, by its name
}

func newFakeLabels(l *life) *fakeLabels {
	return &fakeLabels{life: l, holders: map[string]int{}, of: map[string]string{}}
}

func (f *fakeLabels) New(o selinux.Options) (selinux.Labels, error) {
	f.mine.Lock()
	defer f.mine.Unlock()
	f.last++
	return f.hand(selinux.Labels{Process: fmt.Sprintf("container_t:c%d", f.last), Mount: fmt.Sprintf("file_t:c%d", f.last)}, o)
}

func (f *fakeLabels) Derive(pod selinux.Labels, o selinux.Options) (selinux.Labels, error) {
	f.mine.Lock()
	defer f.mine.Unlock()
	return f.hand(pod, o)
}

// hand counts a holder. Preconditions: f.mine is held.
func (f *fakeLabels) hand(l selinux.Labels, o selinux.Options) (selinux.Labels, error) {
	if o.Type == "unknown_t" {
		return selinux.Labels{}, selinux.ErrInvalid
	}
	if o.Type != "" {
		l.Process = o.Type + filepath.Ext(l.Mount)
	}
	f.holders[l.Mount]++
	return l, nil
}

func (f *fakeLabels) Hold(l selinux.Labels) error {
	f.mine.Lock()
	defer f.mine.Unlock()
	if l.Mount != "" {
		f.holders[l.Mount]++
	}
	return nil
}

func (f *fakeLabels) Release(l selinux.Labels) {
	f.mine.Lock()
	defer f.mine.Unlock()
	if l.Mount == "" {
		return
	}
	if f.holders[l.Mount]--; f.holders[l.Mount] == 0 {
		delete(f.holders, l.Mount)
	}
}

func (f *fakeLabels) Relabel(path, label string) error {
	return f.call("relabel", func() error {
		f.mine.Lock()
		defer f.mine.Unlock()
		f.of[filepath.Base(path)] = label
		return nil
	})
}

func (f *fakeLabels) held() map[string]int {
	f.mine.Lock()
	defer f.mine.Unlock()
	return maps.Clone(f.holders)
}

func TestAPodAndItsContainersHoldTheirLabels(t *testing.T) {
	n, s, c := running(t)
	if held := n.labels.held(); !maps.Equal(held, map[string]int{"file_t:c1": 2}) {
		t.Errorf("held by a pod and its container: %v", held)
	}
	for _, name := range []string{"resolv.conf", "hostname"} {
		if l := n.labels.of[name]; l != "file_t:c1" {
			t.Errorf("%s has label %q", name, l)
		}
	}
	n = n.restart(t)
	if held := n.labels.held(); !maps.Equal(held, map[string]int{"file_t:c1": 2}) {
		t.Errorf("held by them after a restart: %v", held)
	}
	if err := n.RemoveContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if held := n.labels.held(); !maps.Equal(held, map[string]int{"file_t:c1": 1}) {
		t.Errorf("held by the pod: %v", held)
	}
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}

func TestLabelsThatThePolicyDoesNotKnowAreRefused(t *testing.T) {
	n, s, _ := running(t)
	unknown := &runtimeapi.SELinuxOption{Type: "unknown_t"}
	bad := podConfig()
	bad.Metadata.Name = "bad"
	bad.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: unknown}}
	if _, err := n.RunSandbox(t.Context(), bad, ""); !errors.Is(err, ErrInvalid) || !errors.Is(err, selinux.ErrInvalid) {
		t.Error(err)
	}
	c := containerConfig("bad")
	c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: unknown}}
	if _, err := n.CreateContainer(t.Context(), s, c); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if err := n.RemoveSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	n.mustBeEmpty(t)
}
