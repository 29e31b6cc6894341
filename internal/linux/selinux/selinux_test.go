// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"
)

// fakeKernel is a policy with the labels that container-selinux has, which gives the lowest level that is free.
type fakeKernel struct {
	off   bool
	taken map[string]bool
	calls []string
}

func (k *fakeKernel) allocate(level string) (process, mount string, err error) {
	if k.off {
		return "", "", nil
	}
	for n := 1; level == ""; n++ {
		if l := fmt.Sprintf("s0:c0,c%d", n); !k.taken[l] {
			level = l
		}
	}
	k.taken[level] = true
	return "system_u:system_r:container_t:" + level, "system_u:object_r:container_file_t:" + level, nil
}

func (k *fakeKernel) check(label string) error {
	k.calls = append(k.calls, "check "+label)
	if strings.Contains(label, "unknown") {
		return errors.New("invalid argument")
	}
	return nil
}

func (k *fakeKernel) reserve(label string) error {
	if k.taken[levelOf(label)] {
		return selinux.ErrMCSAlreadyExists
	}
	k.taken[levelOf(label)] = true
	return nil
}

func (k *fakeKernel) release(label string) { delete(k.taken, levelOf(label)) }

func mustOpen(t *testing.T) (*Policy, *fakeKernel) {
	t.Helper()
	k := &fakeKernel{taken: map[string]bool{}}
	p, err := open(k)
	if err != nil || p == nil || len(k.taken) != 0 {
		t.Fatal(p, err, k.taken)
	}
	return p, k
}

func mustNew(t *testing.T, p *Policy, o Options) Labels {
	t.Helper()
	l, err := p.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestWithoutSELinuxThereIsNoPolicy(t *testing.T) {
	if p, err := open(&fakeKernel{off: true}); p != nil || err != nil {
		t.Error(p, err)
	}
	if selinux.GetEnabled() {
		t.Skip("this kernel has SELinux")
	}
	if p, err := Open(); p != nil || err != nil {
		t.Error(p, err)
	}
}

func TestPodsHaveLevelsOfTheirOwnUntilTheyGo(t *testing.T) {
	p, k := mustOpen(t)
	a, b := mustNew(t, p, Options{}), mustNew(t, p, Options{})
	if a.Process != "system_u:system_r:container_t:s0:c0,c1" || a.Mount != "system_u:object_r:container_file_t:s0:c0,c1" || b.Process == a.Process {
		t.Errorf("%+v, %+v", a, b)
	}
	p.Release(a)
	if c := mustNew(t, p, Options{}); c != a {
		t.Errorf("the level was not given back: %+v", c)
	}
	p.Release(a)
	p.Release(b)
	p.Release(b) // once too often
	p.Release(Labels{})
	if len(k.taken) != 0 || len(p.holders) != 0 {
		t.Errorf("still taken: %v, %v", k.taken, p.holders)
	}
}

func TestOptionsReplaceWhatTheyName(t *testing.T) {
	p, k := mustOpen(t)
	l := mustNew(t, p, Options{User: "u", Role: "r", Type: "spc_t", Level: "s0:c5,c6"})
	if l.Process != "u:r:spc_t:s0:c5,c6" || l.Mount != "u:object_r:container_file_t:s0:c5,c6" {
		t.Errorf("%+v", l)
	}
	if len(k.calls) != 2 {
		t.Errorf("the kernel was asked %q", k.calls)
	}
	if _, err := p.New(Options{Type: "unknown_t"}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "unknown_t") {
		t.Error(err)
	}
	if len(k.taken) != 1 {
		t.Errorf("a refused label holds a level: %v", k.taken)
	}
	if _, err := p.New(Options{Type: "unknown_t", Level: "s0:c5,c6"}); err == nil || !k.taken["s0:c5,c6"] {
		t.Errorf("a refused label has taken another's level: %v, %v", k.taken, err)
	}
}

func TestContainersHaveTheLevelOfTheirPod(t *testing.T) {
	p, k := mustOpen(t)
	pod := mustNew(t, p, Options{})
	same, err := p.Derive(pod, Options{})
	if err != nil || same != pod {
		t.Errorf("%+v, %v", same, err)
	}
	other, err := p.Derive(pod, Options{Type: "spc_t", Level: "s0:c7"})
	if err != nil || other.Process != "system_u:system_r:spc_t:s0:c7" || other.Mount != "system_u:object_r:container_file_t:s0:c7" || !k.taken["s0:c7"] {
		t.Errorf("%+v, %v", other, err)
	}
	p.Release(pod)
	if !k.taken["s0:c0,c1"] {
		t.Error("the container's level is free while it has it")
	}
	p.Release(same)
	p.Release(other)
	if len(k.taken) != 0 {
		t.Errorf("still taken: %v", k.taken)
	}
}

func TestLevelsOfAnEarlierLifeAreHeld(t *testing.T) {
	p, _ := mustOpen(t)
	old := Labels{"system_u:system_r:container_t:s0:c0,c1", "system_u:object_r:container_file_t:s0:c0,c1"}
	for range 2 { // a pod and its container
		if err := p.Hold(old); err != nil {
			t.Fatal(err)
		}
	}
	if l := mustNew(t, p, Options{}); l.Process == old.Process {
		t.Errorf("%+v was given away again", l)
	}
	if err := p.Hold(Labels{}); err != nil {
		t.Error(err)
	}
}
